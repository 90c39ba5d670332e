package http3

import "sync"

// work counts the requests in flight. The zero work has none.
type work struct {
	mu      sync.Mutex
	n       int
	waiting chan struct{}
}

// add counts 1 as a request begins and -1 as it ends.
func (w *work) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n += n
	w.settle()
}

func (w *work) settle() {
	if w.n == 0 && w.waiting != nil {
		close(w.waiting)
		w.waiting = nil
	}
}

func (w *work) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// done returns a channel that is closed once nothing is in flight.
func (w *work) done() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(chan struct{})
	}
	waiting := w.waiting
	w.settle()
	return waiting
}
