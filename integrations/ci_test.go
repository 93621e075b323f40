package integrations_test

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tools that lint and run what CI systems read.
const (
	actionlint = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
	act        = "github.com/nektos/act@v0.2.89"
	gitlabCI   = "gitlab-ci-local@4.63.0"
)

// stub stands in for drainctl: it writes down what it is asked and by whom it was
// started, and runs the work of a rolling run for one backend.
const stub = `#!/bin/bash
seen=$(dirname "$0")/../seen/$1
printf '%s\n' "$@" >"$seen.line"
env | grep ^DRAINCTL_ | sort >"$seen.env"
ps -o comm= -p $PPID >"$seen.parent"
while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
[ $# = 0 ] || { shift; WORKED=$seen.work DRAINCTL_HOST=192.168.1.10 exec "$@"; }
`

// A pipeline is a repository that has a pipeline, and a stub of drainctl.
type pipeline struct {
	t   *testing.T
	dir string
	env []string
}

func newPipeline(t *testing.T, files map[string]string) *pipeline {
	t.Helper()
	p := &pipeline{t: t, dir: filepath.Join(t.TempDir(), "repository")}
	stubs := filepath.Join(p.dir, "../bin")
	write(t, stubs+"/drainctl", stub, 0o755)
	p.env = []string{"PATH=" + stubs + ":" + os.Getenv("PATH")}
	for name, text := range files {
		write(t, filepath.Join(p.dir, name), text, 0o755)
	}
	p.forget()
	for _, words := range [][]string{
		{"init", "-q"}, {"remote", "add", "origin", "git@git.example.com:shop/app.git"}, {"add", "-A"},
		{"-c", "user.name=ann", "-c", "user.email=ann@example.com", "commit", "-q", "-m", "app"},
	} {
		mustRun(t, p.dir, nil, append([]string{"git"}, words...)...)
	}
	return p
}

// forget removes what the stub has seen.
func (p *pipeline) forget() {
	p.t.Helper()
	seen := filepath.Join(p.dir, "../seen")
	if err := os.RemoveAll(seen); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Mkdir(seen, 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pipeline) saw(what, want string) {
	p.t.Helper()
	if got := read(p.t, filepath.Join(p.dir, "../seen", what)); got != want {
		p.t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

// deploy is what the examples run for each backend.
const deploy = "#!/bin/bash\necho \"$DRAINCTL_HOST $*\" >\"$WORKED\"\n"

// nginxConf is what a dry run is made with.
const nginxConf = "events {}\nhttp { upstream pool { server 192.168.1.10:8080; server 192.168.1.11:8080; } }\n"

// release serves an archive with the real drainctl over HTTP, as a release has it, and
// gives its URL and SHA-256.
func release(t *testing.T) (url, sum string) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "drainctl.tar.gz")
	pack(t, archive, read(t, build(t)))
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(archive))))
	t.Cleanup(server.Close)
	return server.URL + "/drainctl.tar.gz", fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, archive))))
}

func pack(t *testing.T, archive, binary string) {
	t.Helper()
	file, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	zip := gzip.NewWriter(file)
	files := tar.NewWriter(zip)
	if err := files.WriteHeader(&tar.Header{Name: "drainctl", Mode: 0o755, Size: int64(len(binary))}); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Write([]byte(binary)); err != nil {
		t.Fatal(err)
	}
	for _, closer := range []interface{ Close() error }{files, zip, file} {
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// dryRuns fills what a dry run needs into a pipeline: a release whose checksum it gives,
// a directory for the journal, and a configuration that afterwards is as it was.
func dryRuns(t *testing.T, pipeline string) (sum, state string, fill func(sum string) string) {
	t.Helper()
	url, sum := release(t)
	conf, state := filepath.Join(t.TempDir(), "nginx.conf"), t.TempDir()
	write(t, conf, nginxConf, 0o644)
	t.Cleanup(func() {
		if read(t, conf) != nginxConf {
			t.Error("a dry run has edited nginx.conf")
		}
	})
	return sum, state, func(sum string) string {
		return strings.NewReplacer("@URL@", url, "@SUM@", sum, "@CONF@", conf, "@STATE@", state).Replace(pipeline)
	}
}

// installing is a workflow that takes drainctl from a release, makes a dry run with it, and
// has it on the path afterwards.
const installing = `on: push
jobs:
  drain:
    runs-on: self-hosted
    steps:
      - uses: drainctl/drainctl/integrations/github@v0.1.0
        with:
          command: drain
          url: @URL@
          sha256: "@SUM@"
          targets: 192.168.1.10
          flags: |
            --dry-run
            --nginx-conf=@CONF@
            --test-command=true
            --state-dir=@STATE@
            --reason=a b; $(c)
      - run: drainctl drain 192.168.1.10 --dry-run --nginx-conf=@CONF@ --test-command=true --state-dir=@STATE@ >@STATE@/plan
`

// An action of somebody else is pinned by a commit hash, and says its tag: a tag can be
// moved to another commit, a hash cannot.
func TestActionsArePinned(t *testing.T) {
	pinned := regexp.MustCompile(`^[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	uses := regexp.MustCompile(`(?m)^[ -]*["']?uses["']?:\s*(.*?)\s*$`)
	found := 0
	for _, pattern := range []string{"../.github/workflows/*", "../.github/actions/*/*", "github/*.yml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, used := range uses.FindAllStringSubmatch(read(t, file), -1) {
				found++
				ours := strings.HasPrefix(used[1], "./") || strings.HasPrefix(used[1], "drainctl/drainctl/")
				if !ours && !pinned.MatchString(used[1]) {
					t.Errorf("%s: %s is not pinned: use the hash of the commit, then # and the tag", file, used[1])
				}
			}
		}
	}
	if found == 0 {
		t.Error("no action is used anywhere: the test looks at the wrong place")
	}
}

// The project's own workflows are linted by actionlint. So is the GitHub action, in a
// workflow that uses it, and run by act, which runs workflows as GitHub does, on this machine. (Of what a step prints act may lose
// the last lines, so nothing is made of that.)
func TestGitHubAction(t *testing.T) {
	mustRun(t, "..", nil, "go", "run", actionlint, "integrations/github/example.yml", ".github/workflows/ci.yml", ".github/workflows/release.yml")

	p := newPipeline(t, map[string]string{"deploy.sh": deploy, ".github/workflows/deploy.yml": read(t, "github/example.yml")})
	bin := t.TempDir()
	mustRun(t, "..", []string{"GOBIN=" + bin, "GOFLAGS="}, "go", "install", act)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	p.env = append(p.env, "HOME="+t.TempDir())
	workflow := func(file string) (string, error) {
		t.Helper()
		return run(t, p.dir, p.env, bin+"/act", "-W", file, "-P", "self-hosted=-self-hosted", "--local-repository", "drainctl/drainctl@v0.1.0="+root)
	}
	out, err := workflow(".github/workflows/deploy.yml")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.saw("run.work", "192.168.1.10 192.168.1.10\n")
	p.saw("check.line", "check\n")
	p.saw("check.env", "DRAINCTL_LB=deploy@lb1.example.com,deploy@lb2.example.com\nDRAINCTL_UPSTREAM=backend_servers\n")
	p.saw("run.line", "run\n--service=my-web-app\n--health=http://{address}:{port}/health\n--reason=deploy 1\n--\nbash\n-euo\npipefail\n-c\neval \"$WORK\"\n")
	// The runner signals the process that it has started, and that must be drainctl.
	p.saw("run.parent", "act\n")

	sum, state, fill := dryRuns(t, installing)
	install := func(sum string) (string, error) {
		t.Helper()
		write(t, filepath.Join(p.dir, "install.yml"), fill(sum), 0o644)
		return workflow("install.yml")
	}
	for _, wrong := range []string{strings.Repeat("0", 64), ""} {
		if out, err = install(wrong); err == nil {
			t.Errorf("with the checksum %q it does not fail:\n%s", wrong, out)
		}
	}
	if out, err = install(sum); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, read(t, state+"/plan"), "server 192.168.1.10:8080 down;", "dry run: nothing is touched")
}

// dryRun is a pipeline that makes a dry run.
const dryRun = `include:
  - local: drainctl.gitlab-ci.yml
dry:
  extends: .drainctl-run
  variables:
    ROLL_WORK: "true"
    ROLL_TARGETS: 192.168.1.10 192.168.1.11
    ROLL_URL: @URL@
    ROLL_SHA256: "@SUM@"
    DRAINCTL_DRY_RUN: "true"
    DRAINCTL_NGINX_CONF: @CONF@
    DRAINCTL_TEST_COMMAND: "true"
    DRAINCTL_STATE_DIR: @STATE@
`

// The GitLab template is checked against GitLab's schema and run by gitlab-ci-local, in
// the pipeline of the example.
func TestGitLabTemplate(t *testing.T) {
	p := newPipeline(t, map[string]string{
		"deploy.sh": deploy, ".gitlab-ci.yml": read(t, "gitlab/example.yml"), "drainctl.gitlab-ci.yml": read(t, "gitlab/drainctl.gitlab-ci.yml"),
	})
	local := func(words ...string) (string, error) {
		t.Helper()
		return run(t, p.dir, p.env, append([]string{"npx", "--yes", gitlabCI, "--home", t.TempDir()}, words...)...)
	}
	job := func(words ...string) string {
		t.Helper()
		out, err := local(words...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", words, err, out)
		}
		return out
	}
	says(t, job("--list"), "json schema validated", "check ", "deploy ")
	job("check")
	p.saw("check.line", "check\n")
	p.saw("check.env", "DRAINCTL_LB=deploy@lb1.example.com,deploy@lb2.example.com\nDRAINCTL_UPSTREAM=backend_servers\n")
	job("deploy")
	p.saw("run.work", "192.168.1.10 \n")
	p.saw("run.line", "run\n--\nbash\n-euo\npipefail\n-c\neval \"$ROLL_WORK\"\n")
	p.saw("run.env", "DRAINCTL_HEALTH=http://{address}:{port}/health\nDRAINCTL_LB=deploy@lb1.example.com,deploy@lb2.example.com\nDRAINCTL_SERVICE=my-web-app\nDRAINCTL_UPSTREAM=backend_servers\n")
	if out, err := local("deploy", "--variable", "ROLL_WORK="); err == nil || !strings.Contains(out, "ROLL_WORK is empty") {
		t.Errorf("without work it says (%v):\n%s", err, out)
	}

	sum, _, fill := dryRuns(t, dryRun)
	dry := func(sum string) (string, error) {
		t.Helper()
		write(t, filepath.Join(p.dir, "dry.yml"), fill(sum), 0o644)
		return local("--file", "dry.yml", "dry")
	}
	out, err := dry(sum)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, out, "run 192.168.1.10, 192.168.1.11 (dry run: nothing is touched")
	for sum, why := range map[string]string{strings.Repeat("0", 64): "did NOT match", "": "ROLL_URL needs ROLL_SHA256"} {
		if out, err = dry(sum); err == nil {
			t.Errorf("with the checksum %q it does not fail:\n%s", sum, out)
		}
		says(t, out, why)
	}
}
