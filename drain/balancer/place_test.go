package balancer

import (
	"os"
	"strings"
	"testing"
)

// problemsOf returns the texts of the problems of one code in a plan to mark the first server.
func (r *rig) problemsOf(code string, o Options) (texts []string) {
	r.t.Helper()
	lb := NewLocal(o)
	defer lb.Close()
	report, err := lb.Plan(r.t.Context(), down("127.0.0.2:8080"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Code == code {
			texts = append(texts, p.Text)
		}
	}
	return texts
}

// In each case nginx runs as in a container, or as a unit of systemd. Nothing may be touched unless
// nginx sees the files that drainctl edits.
func TestNginxOfAnotherNamespace(t *testing.T) {
	const mounts, exec = `d=${3%/*}; `, `; exec "$@"`
	const files = mounts + `touch $d/nginx.pid; mount --bind $d /mnt; mount -t tmpfs tmpfs $d
for f in nginx.conf pool.conf nginx.pid; do touch $d/$f; mount --bind /mnt/$f $d/$f; done; umount /mnt` + exec
	for _, test := range []struct {
		name   string
		flag   string
		script string
		then   func(*rig)
		want   string
	}{
		{"a network of its own", "-n", `ip link set lo up` + exec, nil, "another network namespace"},
		{"PrivateTmp", "-m", `mount -t tmpfs tmpfs /var/tmp` + exec, nil, ""},
		{"the directory is mounted", "-m", mounts + `mount --bind $d $d` + exec, nil, ""},
		{"another file", "-m", mounts + `cp $d/pool.conf $d/copy; mount --bind $d/copy $d/pool.conf` + exec, nil, "/pool.conf as it is here"},
		{"another main file", "-m", mounts + `cp $d/nginx.conf $d/copy; mount --bind $d/copy $d/nginx.conf` + exec, nil, "/nginx.conf as it is here"},
		{
			"no file", "-m", mounts + `mkdir $d/a; mount -t tmpfs tmpfs $d/a` + exec,
			func(r *rig) {
				r.write(r.dir+"/a/pool.conf", r.was)
				r.must(os.Remove(r.pool))
				r.must(os.Symlink("a/pool.conf", r.pool))
			}, "/pool.conf as it is here",
		},
		{"each file is mounted", "-m", files, nil, "/pool.conf when it is replaced"},
		{"each file is mounted, and one was replaced", "-m", files, func(r *rig) { r.write(r.dir+"/new", r.was); r.must(os.Rename(r.dir+"/new", r.pool)) }, "/pool.conf as it is here"},
		{
			"an absolute link to another file", "-m",
			mounts + `mkdir $d/a; mv $d/pool.conf $d/a; ln -s $d/a/pool.conf $d/pool.conf; cp -r $d/a $d/b; mount --bind $d/b $d/a` + exec,
			nil, "/pool.conf as it is here",
		},
		{"an absolute link to the same file", "-m", mounts + `mkdir $d/a; mv $d/pool.conf $d/a; ln -s $d/a/pool.conf $d/pool.conf; mount --bind $d/a $d/a` + exec, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, "unshare", test.flag, "sh", "-e", "-c", test.script, "sh")
			if test.then != nil {
				test.then(r)
			}
			custom := r.options()
			custom.Nginx.TestCommand, custom.Nginx.ReloadCommand = []string{"true"}, []string{"true"}
			for _, o := range []Options{r.options(), custom} {
				found := r.problemsOf("other-namespace", o)
				if (len(found) == 0) != (test.want == "") || !strings.Contains(strings.Join(found, "\n"), test.want) {
					t.Errorf("%q, not %q", found, test.want)
				}
			}
		})
	}
}

// What /proc/PID/cgroup says of processes in containers (cgroups(7)), by the programs that start them.
func TestContainerOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const short = "container 0123456789ab"
	for _, test := range []struct{ cgroup, want string }{
		{"0::/system.slice/nginx.service\n", ""},
		{"0::/user.slice/user-1000.slice/session-3.scope\n", ""},
		{"0::/\n", ""},
		{"", ""},
		{"0::/docker/" + id[:63] + "\n", ""},
		{"0::/system.slice/docker-" + id + ".scope\n", short},
		{"12:pids:/docker/" + id + "\n11:cpu:/docker/" + id + "\n", short},
		{"0::/machine.slice/libpod-" + id + ".scope/container\n", short},
		{"11:cpu:/libpod_parent/libpod-" + id + "\n", short},
		{"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7c8e.slice/cri-containerd-" + id + ".scope\n", short},
		{"3:cpu:/kubepods/besteffort/pod7c8e/" + id + "\n", short},
		{"0::/lxc.payload.web-1/system.slice/nginx.service\n", "container web-1"},
		{"4:cpu:/lxc/web-1\n", "container web-1"},
		{"0::/machine.slice/systemd-nspawn@lb.service/payload/system.slice/nginx.service\n", "container lb"},
	} {
		if got := containerIn(test.cgroup); got != test.want {
			t.Errorf("%q: %q, not %q", test.cgroup, got, test.want)
		}
	}
}

// Two nginx of one machine, or one nginx with two journals, are two load balancers.
func TestIdentity(t *testing.T) {
	of := func(dir, conf string) string { return NewLocal(Options{StateDir: dir}).identity(conf) }
	is := of("/a", "/nginx.conf")
	if is == "" || of("/a", "/nginx.conf") != is {
		t.Errorf("%q, then %q", is, of("/a", "/nginx.conf"))
	}
	if of("/b", "/nginx.conf") == is || of("/a", "/other.conf") == is {
		t.Error("another LB has the same identity")
	}
}
