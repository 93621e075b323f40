package nginx

import (
	"slices"
	"strings"
	"testing"
)

func FuzzScan(f *testing.F) {
	for _, c := range tokenCases {
		f.Add(c.src)
	}
	for _, c := range editCases {
		f.Add(inUpstream(c.src))
		f.Add(c.files["nginx.conf"])
	}
	f.Add(`a_by_lua_block { x = "}" --[[ } ]] y = [=[ } ]=] -- }` + "\n}")
	f.Fuzz(func(t *testing.T, src string) {
		r := &recorder{}
		if err := scan(src, r); err == nil && r.blocks != r.ends {
			t.Errorf("%d blocks begin and %d end", r.blocks, r.ends)
		}
		checkWords(t, src, r.directives)
	})
}

func FuzzEdit(f *testing.F) {
	for _, c := range editCases {
		if c.src != "" {
			f.Add(inUpstream(c.src), "")
		} else {
			f.Add(c.files["nginx.conf"], c.files["f"])
		}
	}
	for _, c := range clearCases {
		f.Add(inUpstream(c.src), "")
	}
	for _, c := range tokenCases {
		f.Add(inUpstream("server "+c.src), c.src)
	}
	f.Fuzz(func(t *testing.T, src, fragment string) {
		files := memory{mainConf: src, "/etc/nginx/f": fragment}
		c, err := load(t.Context(), files, mainConf)
		if err != nil {
			return
		}
		for _, u := range c.Upstreams {
			if u.CrossCheck() != nil {
				continue
			}
			for i, s := range u.Servers[:min(len(u.Servers), 8)] {
				fuzzOne(t, files, c, slices.Index(c.Upstreams, u), i, s)
			}
		}
	})
}

// fuzzOne marks the i-th server of the n-th upstream down and clears it again.
func fuzzOne(t *testing.T, files memory, c *Config, n, i int, s *Server) {
	edits := s.Edits(true)
	if s.IsDown() {
		if edits != nil {
			t.Fatalf("%v is down, and is edited", s.Words())
		}
		return
	}
	if err := c.Verify(edits); err != nil {
		t.Fatalf("the upstream passes the cross-check, and its edit does not: %v", err)
	}
	marked, err := Apply(s.File.Src, edits)
	if err != nil {
		t.Fatal(err)
	}
	end := int(s.Words()[len(s.Words())-1].End)
	if marked != s.File.Src[:end]+" down"+s.File.Src[end:] {
		t.Fatalf("the edit changes more than the server: %q became %q", s.File.Src, marked)
	}
	after := memory{mainConf: files[mainConf], "/etc/nginx/f": files["/etc/nginx/f"]}
	after[s.File.Path] = marked
	c2, err := load(t.Context(), after, mainConf)
	if err != nil {
		t.Fatalf("after the edit: %v", err)
	}
	sameButTheLine(t, c, c2, s)
	s2 := c2.Upstreams[n].Servers[i]
	if err := c2.Verify(s2.Edits(false)); err != nil {
		t.Fatalf("the upstream passed the cross-check, and undoing its edit does not: %v", err)
	}
	cleared, err := Apply(marked, s2.Edits(false))
	if err != nil || cleared != s.File.Src {
		t.Fatalf("%q became %q, and then %q (%v)", s.File.Src, marked, cleared, err)
	}
}

// sameButTheLine makes sure that after is before, but that the line of s is
// down, wherever it is included.
func sameButTheLine(t *testing.T, before, after *Config, s *Server) {
	if len(before.Upstreams) != len(after.Upstreams) {
		t.Fatalf("%d upstreams became %d", len(before.Upstreams), len(after.Upstreams))
	}
	for n, u := range before.Upstreams {
		v := after.Upstreams[n]
		if u.Name != v.Name || u.Module != v.Module || len(u.Servers) != len(v.Servers) {
			t.Fatalf("upstream %s/%s of %d servers became %s/%s of %d", u.Module, u.Name, len(u.Servers), v.Module, v.Name, len(v.Servers))
		}
		for i, was := range u.Servers {
			want := texts(was.Words())
			if was.File == s.File && was.At == s.At {
				want = append(want, "down")
			}
			if got := texts(v.Servers[i].Words()); !slices.Equal(got, want) {
				t.Fatalf("server %q became %q", want, got)
			}
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, c := range addressCases {
		f.Add(c.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil || a.Host == "unix" { // such a host cannot be written with its port
			return
		}
		if a.Unix == "" && (a.Host == "" || a.Port == 0) {
			t.Errorf("%q is %+v", s, a)
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("%q is %+v, %s, which is %+v, %v", s, a, a, again, err)
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, c := range addressCases {
		f.Add(c.in)
	}
	f.Add("2001:db8::1")
	f.Fuzz(func(t *testing.T, s string) {
		to, err := ParseTarget(s)
		if err != nil || to.Host == "unix" {
			return
		}
		again, err := ParseTarget(to.String())
		if err != nil || again != to {
			t.Errorf("%q is %+v, %s, which is %+v, %v", s, to, to, again, err)
		}
		if strings.ContainsAny(to.String(), " \t\r\n;{}'\"`$&|<>\\\x00") && to.Unix == "" {
			t.Errorf("%q is taken for the target %q", s, to)
		}
		a := to.Address
		if a.Unix == "" && a.Port == 0 {
			a.Port = DefaultPort
		}
		if !to.Matches(a) {
			t.Errorf("target %s does not match its own address", to)
		}
		parsed, err := ParseAddress(a.String())
		if err != nil || !to.Matches(parsed) {
			t.Errorf("target %s does not match %s: %v", to, a, err)
		}
	})
}

func FuzzStubStatus(f *testing.F) {
	for _, c := range statusCases {
		f.Add([]byte(c.page))
	}
	f.Fuzz(func(t *testing.T, page []byte) {
		s, err := ParseStubStatus(page)
		if err != nil {
			return
		}
		for _, n := range []int{s.Active, s.Accepts, s.Handled, s.Requests, s.Reading, s.Writing, s.Waiting, s.Open()} {
			if n < 0 {
				t.Errorf("%q is %+v", page, s)
			}
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add("70 (nginx) S 1 70 70 0 -1 4194368 50 0 0 0 0 0 0 0 20 0 1 0 90000 1 2")
	f.Add("70 (a) b) c) S -1 70 70 0 -1 1 50 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615")
	f.Add("70 ()")
	f.Fuzz(func(t *testing.T, stat string) {
		parent, started, err := parseStat(stat)
		if err != nil && (parent != 0 && started != 0) {
			t.Errorf("%q: %d, %d, %v", stat, parent, started, err)
		}
	})
}
