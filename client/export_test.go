package client

// Retire makes the publisher's stream take no more requests, as if the broker had stopped reading it.
func Retire(p *Publisher) { p.home.stream.Load().retire(ErrDisconnected) }
