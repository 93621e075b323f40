package nginx

import (
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/bench"
)

func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	pool := bench.Large()
	if err := pool.Write(dir); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var c *Config
	for b.Loop() {
		var err error
		if c, err = Load(b.Context(), dir+"/nginx.conf"); err != nil {
			b.Fatal(err)
		}
	}
	servers, size := 0, 0
	for _, u := range c.Upstreams {
		servers += len(u.Servers)
	}
	for _, f := range c.Files {
		size += len(f.Src)
	}
	if servers != pool.Servers || len(c.Files) != pool.Files+1 {
		b.Fatalf("%d servers in %d files", servers, len(c.Files))
	}
	b.SetBytes(int64(size))
	b.ReportMetric(float64(live(&c))/1e6, "MB-live")
}

// live is how many bytes of memory hold the configuration.
func live(c **Config) uint64 {
	var with, without runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&with)
	runtime.KeepAlive(*c)
	*c = nil
	runtime.GC()
	runtime.ReadMemStats(&without)
	return with.HeapAlloc - without.HeapAlloc
}

// BenchmarkBesideNginx is what planning reads of a configuration, as a part of
// the time that nginx -t takes on it, in turns.
func BenchmarkBesideNginx(b *testing.B) {
	needNginx(b)
	dir := b.TempDir()
	if err := bench.Large().Write(dir); err != nil {
		b.Fatal(err)
	}
	to := target(b, "10.0.195.80:8080")
	var ours, theirs []time.Duration
	for b.Loop() {
		began := time.Now()
		c, err := Load(b.Context(), dir+"/nginx.conf")
		if err != nil {
			b.Fatal(err)
		}
		s := c.Match(to, nil)[0]
		if err := s.Upstream.CrossCheck(); err != nil {
			b.Fatal(err)
		}
		for _, f := range c.Files {
			if _, err := ChangeTime(f.Path); err != nil {
				b.Fatal(err)
			}
		}
		if len(c.DirectReferences(to, []*Server{s})) != 0 {
			b.Fatal("a direct reference")
		}
		ours = append(ours, time.Since(began))
		began = time.Now()
		if out, err := exec.Command("nginx", "-t", "-q", "-p", dir, "-c", dir+"/nginx.conf").CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		theirs = append(theirs, time.Since(began))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	mine, other := ours[len(ours)/2], theirs[len(theirs)/2]
	b.ReportMetric(float64(mine.Microseconds())/1000, "ms-ours")
	b.ReportMetric(float64(other.Microseconds())/1000, "ms-nginx-t")
	b.ReportMetric(mine.Seconds()/other.Seconds(), "of-nginx-t")
}

func BenchmarkMatch(b *testing.B) {
	dir := b.TempDir()
	if err := bench.Large().Write(dir); err != nil {
		b.Fatal(err)
	}
	c, err := Load(b.Context(), dir+"/nginx.conf")
	if err != nil {
		b.Fatal(err)
	}
	to := Target{Address{Host: "10.0.200.100"}}
	if to.IP, _ = parseIP(to.Host); !to.IP.IsValid() {
		b.Fatal(to.Host)
	}
	for b.Loop() {
		if found := c.Match(to, nil); len(found) != 1 {
			b.Fatalf("%d servers", len(found))
		}
	}
}

func BenchmarkMarkDown(b *testing.B) {
	dir := b.TempDir()
	if err := bench.Large().Write(dir); err != nil {
		b.Fatal(err)
	}
	c, err := Load(b.Context(), dir+"/nginx.conf")
	if err != nil {
		b.Fatal(err)
	}
	s := c.Upstreams[2500].Servers[10]
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Upstream.CrossCheck(); err != nil {
			b.Fatal(err)
		}
		if err := c.Verify(s.Edits(true)); err != nil {
			b.Fatal(err)
		}
		if _, err := Apply(s.File.Src, s.Edits(true)); err != nil {
			b.Fatal(err)
		}
	}
}
