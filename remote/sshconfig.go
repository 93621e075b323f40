package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/command"
	"github.com/skeema/knownhosts"
)

const (
	// defaultDialTimeout is how long a connection may take until the login.
	defaultDialTimeout = 10 * time.Second
	// maxRoute bounds the hosts on the way to one, and finds circles.
	maxRoute = 8
)

// SSH is how to reach a host over SSH. What is empty is taken from the
// configuration of ssh, then from its defaults. There is no way to turn the
// check of the host key off, whatever StrictHostKeyChecking says there.
type SSH struct {
	Address  string // host name or address, or an alias of the configuration
	User     string
	Port     int
	Identity string // private key file, before all others
	// ConfigFile is read in the place of ~/.ssh/config and
	// /etc/ssh/ssh_config; "none" stands for no file.
	ConfigFile string
	// KnownHosts is read in the place of the configured known_hosts files.
	KnownHosts string
	// Passphrase is asked for the passphrase of the key file at keyPath when
	// the host would take that key and no agent holds it. It may be asked
	// again if it was wrong. What it returns is overwritten. It must return
	// when ctx ends. If it is nil, such a key is an error.
	Passphrase func(ctx context.Context, keyPath string) ([]byte, error)
	// Trace, if not nil, is told every command as it is sent, without what
	// it reads.
	Trace func(host, command string)
	// DialTimeout bounds making a connection to each host on the way, a
	// person's typing not counted. It is ConnectTimeout of the configuration
	// or 10 s if it is 0.
	DialTimeout time.Duration
}

// Connect connects to the host. The error is a *HostKeyError where its key is
// not known, an *AuthError where it refuses the login, and ErrConnection where
// it cannot be reached.
//
// The connection is kept, and made anew when it breaks: by the next call, or
// by the one that finds it broken before it has sent anything.
func (s SSH) Connect(ctx context.Context) (Host, error) {
	return s.connect(ctx, defaultLimits())
}

// endpoint is a host as the configuration of ssh describes it.
type endpoint struct {
	alias        string // as it was asked for
	host         string // name or address to connect to
	port         int
	user         string
	identities   []identity
	certificates []string
	onlyThese    bool     // IdentitiesOnly
	agent        string   // socket of the agent; "" for none
	knownHosts   []string // files
	keyAlias     string   // the name that known_hosts has the host under, if not its own
	revoked      string   // file of revoked host keys
	timeout      time.Duration
	proxyCommand string // for the shell; "" for none
	// knownHostsCommand prints further lines of known_hosts, if it is not empty.
	knownHostsCommand []string
}

// identity is the file of a private key.
type identity struct {
	path     string
	explicit bool // named by the user for this run: it must be there, and comes first
}

// name is the endpoint for a person.
func (e endpoint) name() string {
	name := e.user + "@" + e.alias
	if e.port != 22 {
		if strings.Contains(e.alias, ":") {
			name = e.user + "@[" + e.alias + "]"
		}
		name += ":" + strconv.Itoa(e.port)
	}
	return name
}

// addr is what to connect to.
func (e endpoint) addr() string { return joinPort(e.host, e.port) }

// keyAddr is the address that known_hosts is asked for. The name of an alias
// comes without the port (ssh_config(5), HostKeyAlias).
func (e endpoint) keyAddr() string {
	if e.keyAlias != "" {
		return joinPort(strings.ToLower(e.keyAlias), 22)
	}
	return joinPort(strings.ToLower(e.host), e.port)
}

// joinPort is an address to dial.
func joinPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// route is the host of s, after the hosts to go through.
func (s SSH) route(ctx context.Context) ([]endpoint, error) {
	s.Address = strings.Trim(s.Address, "[]")
	return s.routeWithin(ctx, maxRoute)
}

// routeWithin is a route over no more than limit other hosts. As with ssh -J, the
// configuration of the first of these says how that one is reached in turn.
func (s SSH) routeWithin(ctx context.Context, limit int) (route []endpoint, err error) {
	out, err := s.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ssh configuration of %s: %w", s.Address, err)
	}
	e, jumps, err := parseEndpoint(s.Address, out)
	if err != nil {
		return nil, fmt.Errorf("ssh configuration of %s: %w", s.Address, err)
	}
	if s.Identity != "" {
		e.identities = append([]identity{{path: s.Identity, explicit: true}}, e.identities...)
	}
	if s.KnownHosts != "" {
		e.knownHosts = []string{s.KnownHosts}
	}
	e.timeout = cmp.Or(s.DialTimeout, e.timeout)
	for i, jump := range jumps {
		if i >= limit {
			return nil, fmt.Errorf("ProxyJump: more than %d hosts, or a circle", maxRoute)
		}
		hop := s
		hop.Identity = ""
		if hop.User, hop.Address, hop.Port, err = parseJump(jump); err != nil {
			return nil, err
		}
		hops, err := hop.routeWithin(ctx, limit-i-1)
		if err != nil {
			return nil, err
		}
		if i > 0 { // reached through the one before it
			hops = hops[len(hops)-1:]
		}
		route = append(route, hops...)
	}
	return append(route, e), nil
}

// ask asks ssh what its configuration says of the host.
func (s SSH) ask(ctx context.Context) (string, error) {
	if s.Address == "" || strings.HasPrefix(s.Address, "-") || strings.ContainsAny(s.Address, shellSpecial+"\x00@/") {
		return "", fmt.Errorf("%q is not a host name or address", s.Address)
	}
	args := []string{"ssh", "-T", "-G"}
	if s.ConfigFile != "" {
		args = append(args, "-F", s.ConfigFile)
	}
	if s.User != "" {
		args = append(args, "-l", s.User)
	}
	if s.Port != 0 {
		args = append(args, "-p", strconv.Itoa(s.Port))
	}
	// No grace: what "Match exec" has started may hold the output of ssh open for long.
	here := &local{limits: limits{output: maxOutput}}
	r, err := here.Run(ctx, Command{Args: append(args, "--", s.Address), Limit: NoLimit})
	if r.Code == command.NotFound {
		return "", errors.New("there is no ssh on this machine, which drainctl asks what ~/.ssh/config means\nhint: install openssh-client")
	}
	if err == nil {
		err = r.Err("ssh", "-G")
	}
	return string(r.Stdout), err
}

// parseEndpoint reads what ssh -G prints: a line "name value" for each option.
// It has expanded HostName and the files of known hosts, the latter without
// quotes, and leaves the % tokens of other files (OpenSSH 9.2).
func parseEndpoint(alias, out string) (e endpoint, jumps []string, err error) {
	e = endpoint{alias: alias, agent: os.Getenv("SSH_AUTH_SOCK"), timeout: defaultDialTimeout}
	options := make(map[string][]string)
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.EqualFold(value, "none") || name == "identityagent" {
			options[name] = append(options[name], value)
		}
	}
	first := func(name string) string { return append(options[name], "")[0] }
	if e.host, e.user = first("hostname"), first("user"); e.host == "" || e.user == "" {
		return e, nil, errors.New("unexpected output of ssh -G: no hostname or no user")
	}
	if e.port, err = parsePort(first("port")); err != nil {
		return e, nil, err
	}
	if seconds, serr := strconv.Atoi(first("connecttimeout")); serr == nil && seconds > 0 {
		e.timeout = time.Duration(seconds) * time.Second
	}
	e.keyAlias, e.onlyThese = first("hostkeyalias"), first("identitiesonly") == "yes"
	x, err := newExpansion(e)
	if err != nil {
		return e, nil, err
	}
	for _, value := range options["identityfile"] {
		e.identities = append(e.identities, identity{path: x.path(value)})
	}
	for _, value := range options["certificatefile"] {
		e.certificates = append(e.certificates, x.path(value))
	}
	if value := first("revokedhostkeys"); value != "" {
		e.revoked = x.path(value)
	}
	for _, value := range append(options["userknownhostsfile"], options["globalknownhostsfile"]...) {
		for _, file := range splitFiles(value) {
			e.knownHosts = append(e.knownHosts, x.tilde(file))
		}
	}
	switch agent := first("identityagent"); {
	case strings.EqualFold(agent, "none"):
		e.agent = ""
	case strings.HasPrefix(agent, "$") && !strings.HasPrefix(agent, "${"):
		e.agent = os.Getenv(agent[1:])
	case agent != "" && agent != "SSH_AUTH_SOCK":
		e.agent = x.tilde(agent)
	}
	e.proxyCommand = x.proxyCommand(first("proxycommand"), first("proxyusefdpass"))
	if value := x.tokens(first("proxyjump")); value != "" {
		jumps = strings.Split(value, ",")
	}
	e.knownHostsCommand = x.knownHostsCommand(e, first("knownhostscommand"))
	return e, jumps, x.err
}

// splitFiles splits a list of files. What begins with neither / nor ~ is the
// rest of a name with a blank in it.
func splitFiles(value string) []string {
	var files []string
	for _, word := range strings.Split(value, " ") {
		switch n := len(files); {
		case strings.EqualFold(word, "none"):
		case n > 0 && !strings.HasPrefix(word, "/") && !strings.HasPrefix(word, "~"):
			files[n-1] += " " + word
		default:
			files = append(files, word)
		}
	}
	return files
}

// expansion expands what ssh -G leaves unexpanded. It keeps the first error.
type expansion struct {
	home   string
	values map[string]string
	err    error
}

// newExpansion knows the tokens of ssh_config(5), "TOKENS", for e.
func newExpansion(e endpoint) (*expansion, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	x := &expansion{home: me.HomeDir, values: map[string]string{
		"%%": "%", "%h": e.host, "%n": e.alias, "%p": strconv.Itoa(e.port), "%r": e.user, "%u": me.Username, "%d": me.HomeDir,
		"%k": cmp.Or(e.keyAlias, e.host), "%i": me.Uid,
	}}
	if hostname, err := os.Hostname(); err == nil {
		x.values["%l"] = hostname
		x.values["%L"], _, _ = strings.Cut(hostname, ".")
	}
	return x, nil
}

var (
	variable = regexp.MustCompile(`\$\{[^}]*\}`)
	token    = regexp.MustCompile(`(?s)%.?`)
)

// path expands % tokens, ${VARIABLES} and ~ in the name of a file.
func (x *expansion) path(value string) string { return x.tilde(x.word(value)) }

// word expands % tokens and ${VARIABLES}.
func (x *expansion) word(value string) string {
	return variable.ReplaceAllStringFunc(x.tokens(value), func(v string) string {
		text, set := os.LookupEnv(v[2 : len(v)-1])
		if !set {
			x.fail("%q: %s is not set in the environment", value, v)
		}
		return text
	})
}

// shellSpecial are the characters that OpenSSH allows in no name, since 9.6: they mean something to the
// shell of a ProxyCommand (valid_hostname in its ssh.c).
const shellSpecial = "'`\"$\\;&<>|(){} \t\r\n"

// proxyCommand is a ProxyCommand for the shell. The names in it may come from elsewhere, such as the
// configuration of an nginx.
func (x *expansion) proxyCommand(value, passesDescriptor string) string {
	switch {
	case value == "-":
		x.fail("ProxyCommand -: the standard input of drainctl is not a connection")
	case value != "" && passesDescriptor == "yes":
		x.fail("drainctl does not support ProxyUseFdpass")
	}
	for _, t := range []string{"%h", "%n", "%k", "%r"} {
		if name := x.values[t]; strings.Contains(value, t) && (strings.HasPrefix(name, "-") || strings.ContainsAny(name, shellSpecial)) {
			x.fail("ProxyCommand: %s is %q, which means something else to the shell", t, name)
		}
	}
	return x.tokens(value)
}

// knownHostsCommand is a KnownHostsCommand, which no shell runs. It is run once, before the host shows
// its key, so tokens of that key are not known.
func (x *expansion) knownHostsCommand(e endpoint, value string) []string {
	words, err := Split(value)
	if err != nil {
		x.fail("KnownHostsCommand %q: %w", value, err)
	}
	if len(words) > 0 && !filepath.IsAbs(words[0]) {
		x.fail("KnownHostsCommand %q: not an absolute path", value)
	}
	x.values["%H"], x.values["%I"] = knownhosts.Normalize(e.keyAddr()), "HOSTNAME"
	for i, w := range words {
		words[i] = x.word(w)
	}
	return words
}

// tilde expands ~ and ~USER at the start of a name.
func (x *expansion) tilde(value string) string {
	if !strings.HasPrefix(value, "~") {
		return value
	}
	name, rest, _ := strings.Cut(value[1:], "/")
	home := x.home
	if name != "" {
		other, err := user.Lookup(name)
		if err != nil {
			x.fail("%q: %w", value, err)
			return value
		}
		home = other.HomeDir
	}
	return filepath.Join(home, rest)
}

// tokens expands % tokens.
func (x *expansion) tokens(value string) string {
	return token.ReplaceAllStringFunc(value, func(t string) string {
		text, found := x.values[t]
		switch {
		case t == "%":
			x.fail("%q: a %% with nothing after it", value)
		case !found:
			x.fail("%q: drainctl does not know %s here", value, t)
		}
		return text
	})
}

func (x *expansion) fail(format string, args ...any) {
	if x.err == nil {
		x.err = fmt.Errorf(format, args...)
	}
}

// parsePort reads a port number.
func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return int(n), nil
}

// parseJump takes apart a host of ProxyJump: [ssh://][user@]host[:port].
func parseJump(jump string) (user, host string, port int, err error) {
	rest := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(jump), "ssh://"), "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, rest = rest[:i], rest[i+1:]
	}
	host = rest // a name, or an IPv6 address
	if strings.HasPrefix(rest, "[") || strings.Count(rest, ":") == 1 {
		var number string
		if host, number, err = net.SplitHostPort(rest); err == nil {
			port, err = parsePort(number)
		} else if inside, closed := strings.CutSuffix(rest, "]"); closed {
			host, err = inside[1:], nil
		}
	}
	if err == nil && host == "" {
		err = errors.New("no host")
	}
	if err != nil {
		return "", "", 0, fmt.Errorf("ProxyJump %q: %w", jump, err)
	}
	return user, host, port, nil
}
