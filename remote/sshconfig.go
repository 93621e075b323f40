package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kevinburke/ssh_config"
)

// systemConfig and systemKnownHosts are the files for all users (ssh_config(5)).
const (
	systemConfig     = "/etc/ssh/ssh_config"
	systemKnownHosts = "/etc/ssh/ssh_known_hosts"
)

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
	jumps        []string // hosts to go through, as in ProxyJump
	knownHosts   []string // files
	keyAlias     string   // the name that known_hosts has the host under, if not its own
	revoked      string   // file of revoked host keys
	timeout      time.Duration
}

// identity is the file of a private key.
type identity struct {
	path     string
	explicit bool // named by the user for this run: it must be there, and comes first
	named    bool // named in the configuration, not one of the defaults
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

// sshConfig is the configuration of ssh.
type sshConfig struct {
	file  string // the one file to read; "" for those of the user and the system
	home  string
	user  string // who runs this
	files []*ssh_config.Config
	// refused is why the files cannot be read here, if they cannot. Then
	// ssh itself is asked what they say.
	refused error
}

// loadSSHConfig reads file, or where it is "" ~/.ssh/config and the system's;
// "none" is no file, as for ssh -F.
func loadSSHConfig(file string) (*sshConfig, error) {
	c := &sshConfig{file: file}
	me, err := user.Current()
	if err == nil {
		c.user, c.home = me.Username, me.HomeDir
	}
	if home, err := os.UserHomeDir(); err == nil {
		c.home = home
	}
	if c.user == "" {
		c.user = os.Getenv("USER")
	}
	var paths []string
	switch file {
	case "none":
	case "":
		paths = []string{filepath.Join(c.home, ".ssh", "config"), systemConfig}
	default:
		paths = []string{file}
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && file == "" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ssh configuration: %w", err)
		}
		if err := c.parse(path, text); err != nil {
			c.refused = fmt.Errorf("ssh configuration: %s: %w", path, err)
		}
	}
	return c, nil
}

// parse reads the text of a file. Conditions other than "Match all" depend on
// more than the name of the host; only ssh can say whether they hold.
func (c *sshConfig) parse(path string, text []byte) error {
	if n := conditionLine(text); n > 0 {
		return fmt.Errorf("line %d: a Match block", n)
	}
	// Tabs between patterns are not known to the library.
	parsed, err := ssh_config.DecodeBytes(bytes.ReplaceAll(text, []byte("\t"), []byte(" ")))
	if err != nil {
		return err
	}
	c.files = append(c.files, parsed)
	return nil
}

// conditionLine is the number of the first line with a Match other than
// "Match all", 0 if there is none.
func conditionLine(text []byte) int {
	for n, line := range strings.Split(string(text), "\n") {
		words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r=", r) })
		if len(words) > 0 && strings.EqualFold(words[0], "match") && !(len(words) == 2 && strings.EqualFold(words[1], "all")) {
			return n + 1
		}
	}
	return 0
}

// options are what a configuration says of one host: lower-case names, values
// in the order in which they apply.
type options map[string][]string

// first is the first value of an option; "" too where it says "none".
func (o options) first(name string) string {
	if v := o[name]; len(v) > 0 && !strings.EqualFold(v[0], "none") {
		return v[0]
	}
	return ""
}

// optionNames are the options that are asked for.
const optionNames = "certificatefile connecttimeout globalknownhostsfile hostkeyalias hostname identitiesonly identityagent " +
	"identityfile port proxycommand proxyjump revokedhostkeys user userknownhostsfile"

// options returns what the configuration says of alias.
func (c *sshConfig) options(ctx context.Context, alias, user string, port int) (options, error) {
	if c.refused != nil {
		return c.ask(ctx, alias, user, port)
	}
	o := make(options)
	for name := range strings.FieldsSeq(optionNames) {
		for _, f := range c.files {
			values, err := f.GetAll(alias, name)
			if err != nil {
				return nil, fmt.Errorf("ssh configuration: %s for %s: %w", name, alias, err)
			}
			o[name] = append(o[name], values...)
		}
	}
	return o, nil
}

// ask asks ssh for the options of alias.
func (c *sshConfig) ask(ctx context.Context, alias, user string, port int) (options, error) {
	args := []string{"-G"}
	if c.file != "" {
		args = append(args, "-F", c.file)
	}
	if user != "" {
		args = append(args, "-l", user)
	}
	if port != 0 {
		args = append(args, "-p", strconv.Itoa(port))
	}
	cmd := exec.CommandContext(ctx, "ssh", append(args, "--", alias)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if words := lastLines(stderr.Bytes(), 1); words != "" {
			err = errors.New(words)
		}
		return nil, fmt.Errorf("%w; drainctl leaves that to `ssh -G`, which failed: %w", c.refused, err)
	}
	o := make(options)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		o[name] = append(o[name], value)
	}
	return o, nil
}

// resolve describes the host that alias names. user and port, where given, go
// before the configuration.
func (c *sshConfig) resolve(ctx context.Context, alias, user string, port int) (endpoint, error) {
	if alias == "" || strings.HasPrefix(alias, "-") || strings.ContainsAny(alias, " \t\r\n\x00@/") {
		return endpoint{}, fmt.Errorf("ssh: %q is not a host name or address", alias)
	}
	o, err := c.options(ctx, alias, user, port)
	if err != nil {
		return endpoint{}, err
	}
	e := endpoint{alias: alias, host: alias, port: port, user: user}
	fail := func(name string, err error) (endpoint, error) {
		return endpoint{}, fmt.Errorf("ssh configuration: %s for %s: %w", name, alias, err)
	}
	if name := o.first("hostname"); name != "" {
		if e.host, err = expandTokens(name, map[byte]string{'h': alias}); err != nil {
			return fail("HostName", err)
		}
	}
	if e.user == "" {
		if e.user = o.first("user"); e.user == "" {
			e.user = c.user
		}
	}
	if e.port == 0 {
		if e.port, err = parsePort(o.first("port"), 22); err != nil {
			return fail("Port", err)
		}
	}
	if name, err := c.complete(&e, o); err != nil {
		return fail(name, err)
	}
	return e, nil
}

// complete fills in what may use the name, port and user of e. The string
// names the option that an error is about.
func (c *sshConfig) complete(e *endpoint, o options) (string, error) {
	tokens := map[byte]string{
		'h': e.host, 'n': e.alias, 'p': strconv.Itoa(e.port), 'r': e.user,
		'u': c.user, 'd': c.home, 'k': e.host,
	}
	if hostname, err := os.Hostname(); err == nil {
		tokens['l'] = hostname
		tokens['L'], _, _ = strings.Cut(hostname, ".")
	}
	tokens['i'] = strconv.Itoa(os.Getuid())
	e.keyAlias = o.first("hostkeyalias")
	if e.keyAlias != "" {
		tokens['k'] = e.keyAlias
	}
	e.onlyThese = strings.EqualFold(o.first("identitiesonly"), "yes")
	var err error
	if e.timeout, err = parseTimeout(o.first("connecttimeout")); err != nil {
		return "ConnectTimeout", err
	}
	if name, err := c.completeFiles(e, o, tokens); err != nil {
		return name, err
	}
	return c.completeJumps(e, o, tokens)
}

// completeFiles fills in the files of e.
func (c *sshConfig) completeFiles(e *endpoint, o options, tokens map[byte]string) (string, error) {
	for _, value := range o["identityfile"] {
		if strings.EqualFold(value, "none") {
			continue
		}
		path, err := c.path(value, tokens)
		if err != nil {
			return "IdentityFile", err
		}
		e.identities = append(e.identities, identity{path: path, named: true})
	}
	if len(o["identityfile"]) == 0 {
		// The defaults of ssh_config(5), the better ones first.
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk"} {
			e.identities = append(e.identities, identity{path: filepath.Join(c.home, ".ssh", name)})
		}
	}
	for _, value := range o["certificatefile"] {
		path, err := c.path(value, tokens)
		if err != nil {
			return "CertificateFile", err
		}
		e.certificates = append(e.certificates, path)
	}
	var err error
	if e.agent, err = c.agentSocket(o["identityagent"], tokens); err != nil {
		return "IdentityAgent", err
	}
	if value := o.first("revokedhostkeys"); value != "" {
		if e.revoked, err = c.path(value, tokens); err != nil {
			return "RevokedHostKeys", err
		}
	}
	for _, known := range []struct{ option, standard string }{
		{"userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"},
		{"globalknownhostsfile", systemKnownHosts + " " + systemKnownHosts + "2"},
	} {
		files := known.standard
		if v := o[known.option]; len(v) > 0 {
			files = v[0]
		}
		for _, file := range splitQuoted(files) {
			if strings.EqualFold(file, "none") {
				continue
			}
			path, err := c.path(file, tokens)
			if err != nil {
				return known.option, err
			}
			e.knownHosts = append(e.knownHosts, path)
		}
	}
	return "", nil
}

// completeJumps fills in the hosts that e is reached through.
func (c *sshConfig) completeJumps(e *endpoint, o options, tokens map[byte]string) (string, error) {
	jumps, err := expandTokens(o.first("proxyjump"), tokens)
	if err != nil {
		return "ProxyJump", err
	}
	for jump := range strings.SplitSeq(jumps, ",") {
		if jump = strings.TrimSpace(jump); jump != "" {
			e.jumps = append(e.jumps, jump)
		}
	}
	// Going around it would be to ignore what the operator set up.
	if command := o.first("proxycommand"); command != "" && len(o["proxyjump"]) == 0 {
		return "ProxyCommand", fmt.Errorf("%q: drainctl runs no proxy commands; use ProxyJump", command)
	}
	return "", nil
}

// agentSocket is the socket of the agent that the IdentityAgent option names;
// without it, the environment does.
func (c *sshConfig) agentSocket(option []string, tokens map[byte]string) (string, error) {
	value := "SSH_AUTH_SOCK"
	if len(option) > 0 {
		value = option[0]
	}
	switch {
	case strings.EqualFold(value, "none"):
		return "", nil
	case value == "SSH_AUTH_SOCK":
		return os.Getenv("SSH_AUTH_SOCK"), nil
	case strings.HasPrefix(value, "$") && !strings.HasPrefix(value, "${"):
		return os.Getenv(value[1:]), nil
	}
	return c.path(value, tokens)
}

// path expands ~, % tokens and ${VARIABLES} in the name of a file.
func (c *sshConfig) path(value string, tokens map[byte]string) (string, error) {
	value, err := expandTokens(value, tokens)
	if err != nil {
		return "", err
	}
	var missing error
	value = expandVariables(value, func(name string) string {
		v, found := os.LookupEnv(name)
		if !found {
			missing = fmt.Errorf("%q: %s is not set in the environment", value, name)
		}
		return v
	})
	if missing != nil {
		return "", missing
	}
	if value == "~" || strings.HasPrefix(value, "~/") {
		return c.home + value[1:], nil
	}
	if strings.HasPrefix(value, "~") {
		name, rest, _ := strings.Cut(value[1:], "/")
		other, err := user.Lookup(name)
		if err != nil {
			return "", fmt.Errorf("%q: %w", value, err)
		}
		return filepath.Join(other.HomeDir, rest), nil
	}
	return value, nil
}

// expandVariables replaces ${NAME} in s; a $ alone stays.
func expandVariables(s string, value func(string) string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			b.WriteString("${" + rest)
			return b.String()
		}
		b.WriteString(value(name))
		s = after
	}
}

// expandTokens replaces the % tokens of ssh_config(5), "TOKENS", in s.
func expandTokens(s string, tokens map[byte]string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", fmt.Errorf("%q: a %% with nothing after it", s)
		}
		value, found := tokens[s[i]]
		switch {
		case s[i] == '%':
			value = "%"
		case !found:
			return "", fmt.Errorf("%q: drainctl does not know %%%c here", s, s[i])
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// splitQuoted splits s at blanks outside double quotes.
func splitQuoted(s string) []string {
	var words []string
	var word strings.Builder
	quoted, inWord := false, false
	for _, r := range s {
		switch {
		case r == '"':
			quoted, inWord = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

// parsePort reads a port number; standard if s is "".
func parsePort(s string, standard int) (int, error) {
	if s == "" {
		return standard, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return int(n), nil
}

// parseTimeout reads a time as ssh_config(5) has it: seconds, or 1m30s; 0 if s is "".
func parseTimeout(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(strings.ToLower(s))
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time", s)
	}
	return d, nil
}

// parseJump takes apart a host of ProxyJump: [ssh://][user@]host[:port].
func parseJump(jump string) (user, host string, port int, err error) {
	rest := strings.TrimSuffix(strings.TrimPrefix(jump, "ssh://"), "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, rest = rest[:i], rest[i+1:]
	}
	number, numbered := "", false
	inside, after, closed := strings.Cut(strings.TrimPrefix(rest, "["), "]")
	switch {
	case strings.HasPrefix(rest, "[") && closed:
		host = inside
		number, numbered = strings.CutPrefix(after, ":")
		if after != "" && !numbered {
			return "", "", 0, fmt.Errorf("ProxyJump %q: not [user@]host[:port]", jump)
		}
	case strings.Count(rest, ":") == 1:
		host, number, numbered = strings.Cut(rest, ":")
	default: // a name, or an IPv6 address
		host = rest
	}
	if numbered {
		if port, err = parsePort(number, 0); err != nil || port == 0 {
			return "", "", 0, fmt.Errorf("ProxyJump %q: %q is not a port", jump, number)
		}
	}
	if host == "" {
		return "", "", 0, fmt.Errorf("ProxyJump %q: no host", jump)
	}
	return user, host, port, nil
}

// joinPort is an address to dial.
func joinPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
