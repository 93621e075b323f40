// Package bench makes configurations that are large enough to measure with.
package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A Pool is a configuration of many servers in many files. A file has ten
// upstreams, and a virtual server that proxies to the first of them.
type Pool struct {
	Files   int
	Servers int // in all files together
}

// Large is the pool that the measurements in the README are of: 5.9 MB.
func Large() Pool { return Pool{Files: 500, Servers: 100_000} }

// upstreams is how many a file has.
const upstreams = 10

// mainFile includes the pool's files.
const mainFile = `worker_processes 2;
error_log error.log;
pid nginx.pid;
events {
    worker_connections 1024;
}
http {
    access_log off;
    server_names_hash_max_size 4096;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include pools/*.conf;
}
`

// virtualServer is the end of the file with the number that it is given.
const virtualServer = `server {
    listen 127.0.0.1:18080;
    server_name pool%[1]d.test;
    location / {
        proxy_pass http://pool%[1]d_0;
    }
}
`

// Write writes nginx.conf and pools/*.conf into dir, which is made if it is
// not there. The first server is 10.0.0.0:8080, and no two are the same. Only a
// pool with ten servers or more to a file is one that nginx takes.
func (p Pool) Write(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "pools"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(mainFile), 0o644); err != nil {
		return err
	}
	for n := range p.Files {
		name := filepath.Join(dir, "pools", fmt.Sprintf("pool%03d.conf", n))
		if err := os.WriteFile(name, []byte(p.file(n)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// file is the text of the n-th file.
func (p Pool) file(n int) string {
	var b strings.Builder
	first, end := n*p.Servers/p.Files, (n+1)*p.Servers/p.Files
	for u := range upstreams {
		fmt.Fprintf(&b, "upstream pool%d_%d {\n", n, u)
		for i := first + u; i < end; i += upstreams {
			fmt.Fprintf(&b, "    server 10.%d.%d.%d:8080 max_fails=2 fail_timeout=5s;\n", i>>16, i>>8&255, i&255)
		}
		b.WriteString("}\n")
	}
	fmt.Fprintf(&b, virtualServer, n)
	return b.String()
}
