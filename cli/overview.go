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
	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/nginx"
)

// showOverview is drainctl without a command, on a terminal: how the servers are,
// and what to type. Where there is no nginx it is about the load balancers of the
// configuration file's groups.
func (s *session) showOverview(ctx context.Context, f *specFlags) error {
	spec := f.spec
	if conf := nginxConf(ctx, spec.Nginx.Or(s.system)); conf != "" && len(spec.LBs) == 0 {
		groups := slices.Sorted(maps.Keys(f.config.groups))
		if len(groups) == 0 {
			if v := show.TextOf(s.view); v != nil {
				v.Welcome(conf)
			}
			return shownError{nil}
		}
		for _, g := range groups {
			s.where = append(s.where, "--group", g)
		}
		var err error
		if spec.LBs, err = f.config.expand(groups, nil); err != nil {
			return err
		}
	}
	return s.show(ctx, spec)
}

// nginxConf is where nginx's configuration should be on this machine, and is not;
// empty where it is.
func nginxConf(ctx context.Context, n drain.Nginx) string {
	_, build, _ := nginx.Find(ctx, nginx.Binary{Path: n.Path})
	conf := cmp.Or(n.Conf, build.Conf, nginx.DefaultConf)
	if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
		return conf
	}
	return ""
}
