package remote

import "testing"

func TestUnitOf(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/my-web-app.service\n":                                     "my-web-app.service",
		"0::/system.slice/system-app.slice/app@8080.service/workers\n":              "app@8080.service",
		"12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/a.service\n": "a.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                             "",
		"0::/\n": "",
		"":       "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q is in %q, want %q", cgroup, got, want)
		}
	}
}
