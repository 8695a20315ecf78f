// Command reliability proves what a broker keeps when it is attacked, loaded, stopped or killed, one subcommand for
// each proof, and fails if it does not. It prints the list without arguments.
//
// Short forms of these proofs are tests, which CI runs. The long forms of three of them are those tests with other
// numbers, so drain, swaps and hostile run go test. All commands work in the root of the module.
package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/reliability/chaos"
	"github.com/felix-mq/felix/reliability/flood"
	"github.com/felix-mq/felix/reliability/isolation"
	"github.com/felix-mq/felix/reliability/stall"
)

func main() {
	brokerproc.Serve()
	flood.Serve()
	stall.Serve()
	isolation.Serve()
	program.Main(program.Commands(
		"reliability",
		program.Command{Name: "chaos", About: "kill a broker under load 50 times: nothing is lost unsaid, and clients come back (about three minutes)", Run: chaos.Run},
		program.Command{Name: "flood", About: "what 20 000 connection attempts per second from false addresses cost (about 80 seconds)", Run: flood.Run},
		program.Command{Name: "stall", About: "what thousands of subscriptions that do not read cost those that do (about six minutes)", Run: stall.Run},
		program.Command{Name: "isolation", About: "attack a broker as one tenant, and measure what another one feels (about 25 minutes)", Run: isolation.Run},
		program.Command{Name: "drain", About: "end 50 brokers under load: nothing acknowledged is lost, and readiness falls first (about two minutes)", Run: longTest("drain", "TestDrainUnderLoad", "drain.", "rounds", 50, "brokers that are ended")},
		program.Command{Name: "swaps", About: "replace a broker's certificate 200 times under load: no handshake fails (about four minutes)", Run: longTest("swaps", "TestCertificateSwaps", "", "swaps", 200, "times that the certificate is replaced")},
		program.Command{Name: "hostile", About: "a million damaged frames and 60 hostile scripts, with a healthy pair next to them (about two minutes)", Run: hostile},
	))
}

// longTest is a command that runs a test of cmd/broker, whose flag with a prefix says how often.
func longTest(name, test, prefix, flag string, times int, about string) func(context.Context, []string, io.Writer, io.Writer) int {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
		flags := program.Flags(name, stderr)
		n := flags.Int(flag, times, about)
		if code, ok := program.Parse(flags, args); !ok {
			return code
		}
		return goTest(ctx, stdout, stderr, "./cmd/broker", test, fmt.Sprintf("-%s%s=%d", prefix, flag, *n))
	}
}

func hostile(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := program.Flags("hostile", stderr)
	seed := flags.Uint64("seed", 0, "of the damaged streams; 0 takes a new one")
	frames := flags.Int("frames", 1_000_000, "frames of the damaged streams")
	rounds := flags.Int("rounds", 5, "times that each script is repeated")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	return goTest(ctx, stdout, stderr, "./conformance/hostile", "TestMutatedFrames|TestBehaviors",
		fmt.Sprintf("-hostile.seed=%d", *seed), fmt.Sprintf("-hostile.frames=%d", *frames), fmt.Sprintf("-hostile.rounds=%d", *rounds))
}

// goTest runs tests of a package with flags of their own.
func goTest(ctx context.Context, stdout, stderr io.Writer, pkg, tests string, flags ...string) int {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", pkg, "-v", "-count=1", "-timeout=20m", "-run", "^(" + tests + ")$"}, flags...)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(stderr, "reliability:", err)
		return 1
	}
	return 0
}
