package remote

import (
	"context"
	"sync"
)

// slot is the one session that a host may have at a time. A Stream holds it,
// or is parked: it keeps its session while it has nothing to do, until another
// command wants the slot.
type slot struct {
	token  chan struct{} // full while somebody holds the slot
	mu     sync.Mutex    // guards parked
	parked *Stream
}

func newSlot() *slot { return &slot{token: make(chan struct{}, 1)} }

// take waits for the slot, and ends a parked Stream.
func (s *slot) take(ctx context.Context) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	parked := s.parked
	s.parked = nil
	s.mu.Unlock()
	if parked != nil {
		parked.closing.Do(parked.shut)
	}
	return nil
}

func (s *slot) wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case s.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *slot) free() { <-s.token }

// unpark says whether st was parked, and takes it out.
func (s *slot) unpark(st *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked != st {
		return false
	}
	s.parked = nil
	return true
}

// park gives the slot back and keeps the session until another command wants it.
func (s *Stream) park() {
	if s.slot == nil {
		return
	}
	s.slot.mu.Lock()
	s.slot.parked = s
	s.slot.mu.Unlock()
	s.release()
}

// release lets the next command have the slot, if s holds it.
func (s *Stream) release() {
	if s.holds.CompareAndSwap(true, false) {
		s.slot.free()
	}
}

// resume takes the slot again after park. It is false if the session has ended
// meanwhile; then s is closed.
func (s *Stream) resume(ctx context.Context) (bool, error) {
	if s.slot == nil {
		return !s.hasEnded(), nil
	}
	if err := s.slot.wait(ctx); err != nil {
		return false, err
	}
	s.holds.Store(true)
	if s.slot.unpark(s) && !s.hasEnded() {
		return true, nil
	}
	s.Close()
	s.release() // it may have been closed before
	return false, nil
}
