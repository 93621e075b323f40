package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NginxConfPath is a load balancer's main configuration file.
const NginxConfPath = "/etc/nginx/nginx.conf"

// NginxConf is every load balancer's configuration when the lab comes up. The
// response header X-Upstream-Addr names the servers that nginx tried, so that a
// client sees a request that was cut and tried again elsewhere.
const NginxConf = `user www-data;
worker_processes 2;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;

events {
    worker_connections 4096;
}

http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    error_log /var/log/nginx/error.log;
    client_max_body_size 64m;

    map $http_upgrade $connection_upgrade {
        default upgrade;
        ""      "";
    }

    upstream backend_servers {
        server 192.168.1.10:8080;
        server 192.168.1.11:8080;
        server 192.168.1.12:8080;
    }

    server {
        listen 80;

        location / {
            proxy_pass http://backend_servers;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            add_header X-Upstream-Addr $upstream_addr always;
        }
    }

    include /etc/nginx/conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
}
`

// idleNginxConf is the configuration of the nginx that the app hosts have and do not
// run.
const idleNginxConf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;

events {
    worker_connections 1024;
}

http {
    include /etc/nginx/conf.d/*.conf;
}
`

// WriteConf writes files of a load balancer's configuration, reloads nginx and returns
// when workers with the new configuration serve and no old worker accepts.
func (m *Machine) WriteConf(ctx context.Context, files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := m.WriteFile(ctx, name, []byte(files[name]), 0o644); err != nil {
			return err
		}
	}
	return m.ReloadNginx(ctx)
}

// ReloadNginx reloads a load balancer's nginx and returns when new workers serve and no
// old worker accepts any more. Old ones may still be busy with what they hold.
func (m *Machine) ReloadNginx(ctx context.Context) error {
	if _, err := m.Run(ctx, "nginx", "-t", "-q"); err != nil {
		return err
	}
	before, err := m.Workers(ctx)
	if err != nil {
		return err
	}
	if _, err := m.Run(ctx, "systemctl", "reload", "nginx"); err != nil {
		return err
	}
	return poll(ctx, time.Minute, func() error {
		now, err := m.Workers(ctx)
		if err != nil {
			return err
		}
		return newGeneration(before, now)
	})
}

// Workers maps the number of each worker of a load balancer's nginx, as the load balancer
// sees it, to whether it accepts connections.
func (m *Machine) Workers(ctx context.Context) (map[int]bool, error) {
	out, err := m.Run(ctx, "sh", "-c", `ps -o pid=,args= --ppid "$(cat /run/nginx.pid)"`)
	if err != nil {
		return nil, fmt.Errorf("workers of nginx: %w", err)
	}
	found := map[int]bool{}
	for line := range strings.Lines(out) {
		number, title, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, err := strconv.Atoi(number)
		if err != nil || !strings.HasPrefix(title, "nginx: worker process") {
			continue
		}
		found[pid] = !strings.Contains(title, "shutting down")
	}
	return found, nil
}

func newGeneration(before, now map[int]bool) error {
	fresh := false
	for pid, accepts := range now {
		if _, old := before[pid]; !old {
			fresh = true
		} else if accepts {
			return fmt.Errorf("nginx: the earlier worker %d still accepts", pid)
		}
	}
	if !fresh {
		return errors.New("nginx has no new worker: see /var/log/nginx/error.log")
	}
	return nil
}
