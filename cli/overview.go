package cli

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/nginx"
)

// showOverview is drainctl without a command, on a terminal: how the servers are,
// and what to type. Where this machine's nginx has none it is about the load balancers
// of the configuration file's groups.
func (s *session) showOverview(ctx context.Context, f *specFlags) (err error) {
	sp := f.spec
	groups := slices.Sorted(maps.Keys(f.config.groups))
	missing := nginxConf(ctx, sp.Nginx.Or(s.system))
	switch {
	case len(sp.LBs) > 0:
	case missing != "" && len(groups) == 0:
		if v := show.TextOf(s.view); v != nil {
			v.Welcome(missing)
		}
		return shownError{nil}
	case len(groups) > 0 && (missing != "" || !s.hasServers(ctx, sp)):
		for _, g := range groups {
			s.where = append(s.where, "--group", g)
		}
		if sp.LBs, err = f.config.expand(groups, nil); err != nil {
			return err
		}
	}
	return s.show(ctx, sp)
}

// hasServers tells whether an upstream of this machine's nginx has servers, or that
// cannot be told.
func (s *session) hasServers(ctx context.Context, sp spec.Spec) bool {
	st, err := status.Read(ctx, sp, s.machines(true))
	return err != nil || len(st.LBs[0].Servers) > 0
}

// nginxConf is where nginx's configuration should be on this machine, and is not;
// empty where it is.
func nginxConf(ctx context.Context, n spec.Nginx) string {
	_, build, _ := nginx.Find(ctx, nginx.Binary{Path: n.Path})
	conf := cmp.Or(n.Conf, build.Conf, nginx.DefaultConf)
	if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
		return conf
	}
	return ""
}
