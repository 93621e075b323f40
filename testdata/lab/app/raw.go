package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// serveRaw answers at an address without HTTP, over TCP and UDP. A client sends a number of
// seconds, and over TCP shuts its side. The answer comes that much later.
func (a *app) serveRaw(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go a.answerConnection(conn)
		}
	}()
	go func() {
		for {
			question := make([]byte, 1500)
			n, from, err := packets.ReadFrom(question)
			if err != nil {
				return
			}
			go a.answerRaw(string(question[:n]), "UDP "+from.String(), func(answer string) { _, _ = packets.WriteTo([]byte(answer), from) })
		}
	}()
	return nil
}

func (a *app) answerConnection(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	question, err := io.ReadAll(conn)
	if err != nil || len(question) == 0 { // somebody only looks whether the app takes connections
		return
	}
	a.answerRaw(string(question), "TCP "+conn.RemoteAddr().String(), func(answer string) { _, _ = io.WriteString(conn, answer) })
}

func (a *app) answerRaw(question, from string, answer func(string)) {
	question = strings.TrimSpace(question)
	defer a.begin(fmt.Sprintf("RAW %s %s", question, from))()
	time.Sleep(secondsOf(question))
	answer(fmt.Sprintf("held %s s\nEND %s\n", question, a.host))
}
