// Package benchmarks measures all packages together: publisher, broker and subscriptions over real QUIC on loopback.
// What one package costs by itself is measured next to its code.
//
// Begin with the table that endtoend prints (go run ./benchmarks/endtoend, also the second half of make bench), which
// runs the broker in a process of its own, and with BenchmarkPublishDeliver here, whose output benchstat reads:
//
//	go test -run '^$' -bench PublishDeliver -benchtime 1x -count 5 ./benchmarks
//
// The measuring itself is left to package loadgen.
package benchmarks
