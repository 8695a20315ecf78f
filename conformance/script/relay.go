package script

import "github.com/felix-mq/felix/internal/relay"

// NewRelay starts a relay in front of the server, which can make it fall silent.
func NewRelay(s *Server) (*relay.Relay, error) { return relay.New(s.Addr()) }
