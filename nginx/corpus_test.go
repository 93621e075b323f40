package nginx

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tufanbarisyildirim/gonginx/parser"
)

// corpusFiles are this machine's, but that an included file which does not exist
// reads as empty: the configurations were taken out of where they belong.
type corpusFiles struct {
	*disk
	main    map[string]string // files that are on no disk
	missing *int
}

func (c corpusFiles) ReadFile(name string) (string, error) {
	if src, ok := c.main[name]; ok {
		return src, nil
	}
	src, err := c.disk.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		*c.missing++
		return "", nil
	}
	return src, err
}

// corpusTotals is what is counted over a corpus.
type corpusTotals struct {
	files, upstreams, servers, located, down, edited, missing, udp int

	refused map[string]int // reason: servers, or files
	defects []string
}

func (c *corpusTotals) defect(format string, args ...any) {
	c.defects = append(c.defects, fmt.Sprintf(format, args...))
}

// TestCorpus reads real configurations. Every server of every upstream is
// looked for by its address, marked down, and cleared again. A file that nginx
// accepts and this package refuses is a defect, but for upstreams that gonginx
// cannot read. Which files nginx accepts is in INDEX.tsv (the columns file and
// nginx_1.22_test), if there is one.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("CORPUS")
	if dir == "" {
		t.Skip("set CORPUS to a directory of nginx configurations")
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no *.conf in %s (%v)", dir, err)
	}
	accepted := acceptedByNginx(t, dir)
	total := &corpusTotals{refused: map[string]int{}}
	for _, name := range names {
		readCorpusFile(t, total, name, accepted[filepath.Base(name)])
	}
	t.Logf("%d files, %d accepted by nginx as they are; %d upstreams; %d servers, %d located by address, %d of them down as it is, %d edited and restored byte for byte; %d missing includes read as empty; %d have UDP servers in stream",
		total.files, len(accepted), total.upstreams, total.servers, total.located, total.down, total.edited, total.missing, total.udp)
	for reason, n := range total.refused {
		t.Logf("refused: %4d %s", n, reason)
	}
	for _, d := range total.defects {
		t.Errorf("defect: %s", d)
	}
}

// acceptedByNginx is the files whose last column says ok.
func acceptedByNginx(t *testing.T, dir string) map[string]bool {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "INDEX.tsv"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes = '\t', true
	rows, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	accepted := map[string]bool{}
	for _, row := range rows {
		if row[len(row)-1] == "ok" {
			accepted[row[0]] = true
		}
	}
	return accepted
}

// readCorpusFile reads one configuration: as a main file, or, when it is made
// to be included in http or stream, as one that is.
func readCorpusFile(t *testing.T, total *corpusTotals, name string, accepted bool) {
	t.Helper()
	total.files++
	base := filepath.Base(name)
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h := corpusFiles{disk: &disk{}, missing: &total.missing}
	conf, err := load(t.Context(), h, name)
	if err == nil && len(conf.Upstreams) == 0 {
		main := name + ".main"
		h.main = map[string]string{main: fmt.Sprintf("http { include %q; }", name)}
		conf, err = load(t.Context(), h, main)
	}
	if err != nil {
		total.refused["files: "+reason(err)]++
		t.Logf("%s: %v", base, err)
		if accepted {
			total.defect("%s: nginx accepts it: %v", base, err)
		}
		return
	}
	for _, s := range conf.Skipped {
		total.defect("%s: %v", base, s.Err)
	}
	if place := conf.UDPServer(); place != "" {
		total.udp++
		t.Logf("%s: a UDP server at %s", base, filepath.Base(place))
	}
	servers := 0
	for _, u := range conf.Upstreams {
		total.upstreams++
		servers += len(u.Servers)
		editUpstream(t, total, conf, h, u, accepted)
	}
	total.servers += servers
	total.compareCounts(t, base, string(src), len(conf.Upstreams), servers)
}

// reason is an error without the place it was found at.
func reason(err error) string {
	var se *SyntaxError
	if errors.As(err, &se) {
		return se.Msg
	}
	return err.Error()
}

// editUpstream looks for, marks and clears every server of u.
func editUpstream(t *testing.T, total *corpusTotals, conf *Config, h corpusFiles, u *Upstream, accepted bool) {
	t.Helper()
	place := fmt.Sprintf("%s:%d: upstream %s", filepath.Base(u.File.Path), u.Line(), u.Name)
	checked := u.CrossCheck()
	if checked != nil {
		why := "servers: gonginx cannot read their upstream"
		if !strings.Contains(checked.Error(), "gonginx cannot read it") {
			why = "servers: gonginx reads their upstream in another way"
		}
		total.refused[why] += len(u.Servers)
		t.Logf("%s: %v", place, checked)
	}
	for i, s := range u.Servers {
		text := s.Words()[1].Text
		to, err := ParseTarget(text)
		if err != nil && s.Address.Unix != "" {
			// An operator names sockets by absolute paths only.
			to, err = Target{s.Address}, nil
		}
		if s.Err != nil || err != nil {
			total.refused["servers: their address cannot be read"]++
			t.Logf("%s: address %q: %v, %v", place, text, s.Err, err)
			if accepted {
				total.defect("%s: nginx accepts the address %q: %v, %v", place, text, s.Err, err)
			}
			continue
		}
		if !slices.Contains(conf.Match(to, nil), s) {
			total.defect("%s: %s is not found by its address", place, text)
			continue
		}
		total.located++
		if checked != nil {
			continue
		}
		if s.IsDown() {
			total.down++
			continue
		}
		if err := markAndClear(t, conf, h, s, slices.Index(conf.Upstreams, u), i); err != nil {
			total.defect("%s: server %s: %v", place, text, err)
			continue
		}
		total.edited++
	}
}

// markAndClear marks a server down, reads the configuration with that change,
// and clears the server again.
func markAndClear(t *testing.T, conf *Config, h corpusFiles, s *Server, upstream, server int) error {
	t.Helper()
	edits := s.Edits(true)
	if err := conf.Verify(edits); err != nil {
		return err
	}
	marked, err := Apply(s.File.Src, edits)
	if err != nil {
		return err
	}
	ignored := 0
	changed := corpusFiles{disk: &disk{}, main: map[string]string{s.File.Path: marked}, missing: &ignored}
	for name, src := range h.main {
		changed.main[name] = src
	}
	after, err := load(t.Context(), changed, conf.Path)
	if err != nil {
		return err
	}
	again := after.Upstreams[upstream].Servers[server]
	if !again.IsDown() {
		return errors.New("it is not down after the edit")
	}
	if err := after.Verify(again.Edits(false)); err != nil {
		return err
	}
	cleared, err := Apply(again.File.Src, again.Edits(false))
	if err != nil {
		return err
	}
	if cleared != s.File.Src {
		return errors.New("the file is not what it was before")
	}
	return nil
}

var (
	commentText   = regexp.MustCompile(`(?m)(^|[\s;{}])#.*$`)
	quotedText    = regexp.MustCompile(`'(\\.|[^'\\])*'|"(\\.|[^"\\])*"`)
	upstreamStart = regexp.MustCompile(`(?:^|[\s;{}])upstream\s+[^\s{;]+\s*\{`)
	serverLine    = regexp.MustCompile(`(?:^|[\s;{}])server\s+[^;{}]+;`)
)

// compareCounts counts upstreams and their servers in two other ways, one
// simple and one by gonginx over the whole file, and wants one of
// them to come to the same.
func (c *corpusTotals) compareCounts(t *testing.T, name, src string, upstreams, servers int) {
	t.Helper()
	simple := [2]int{}
	rest := commentText.ReplaceAllString(src, "$1")
	for {
		at := upstreamStart.FindStringIndex(rest)
		if at == nil {
			break
		}
		rest = rest[at[1]:]
		block := rest
		if end := closingBrace(rest); end >= 0 {
			block, rest = rest[:end], rest[end:]
		}
		simple[0]++
		simple[1] += len(serverLine.FindAllString(strings.ReplaceAll(block, ";", ";\n"), -1))
	}
	whole := [2]int{-1, -1}
	if conf, err := parser.NewStringParser(src, parser.WithSkipValidDirectivesErr()).Parse(); err == nil {
		whole = [2]int{}
		for _, u := range conf.FindUpstreams() {
			whole[0]++
			whole[1] += len(u.UpstreamServers)
		}
	}
	ours := [2]int{upstreams, servers}
	if ours == simple && (ours == whole || whole[0] < 0) {
		return
	}
	t.Logf("%s: upstreams and servers: we see %v, a simple search %v, gonginx %v", name, ours, simple, whole)
	if ours == whole {
		// As "$CONFIG upstream u {": a template that was not filled in, and a
		// directive of another name to all but the simple search.
		c.refused["servers: only a simple search sees them"] += simple[1] - servers
	} else if ours != simple {
		c.defect("%s: upstreams and servers: we see %v, a simple search %v, gonginx %v", name, ours, simple, whole)
	}
}

// closingBrace is where the block that text is in ends, or -1.
func closingBrace(text string) int {
	text = quotedText.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat("x", len(s)) })
	depth := 1
	for i := range len(text) {
		switch text[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}
