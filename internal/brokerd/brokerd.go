// Package brokerd holds the settings that concern a process with a broker in it, for the programs that run one: the
// command broker and felix dev. Settings of the broker itself are in package broker. Begin at [Process].
package brokerd

// FileVariable names the YAML file of settings.
const FileVariable = "FELIX_BROKER_CONFIG"

// Process has the settings of this program, in addition to those of the broker in it.
type Process struct {
	Profile    string `env:"FELIX_PROFILE" words:"latency,balanced,throughput" doc:"set of values for everything that nothing else says; see Profiles"`
	Catalog    string `env:"FELIX_CATALOG" reload:"content" doc:"YAML file of the tenants, streams, caches and keys that the broker serves; see [catalog.md](catalog.md)"`
	Dev        bool   `env:"FELIX_DEV" doc:"development mode: makes a tenant, streams, a cache, a certificate and a token, and prints what clients need as one line of JSON"`
	DevKeyFile string `env:"FELIX_DEV_KEY_FILE" doc:"PEM file of the key that signs the tokens of development mode, made if it is not there; empty makes a new key at each start"`
}

// DefaultProcess returns the settings of a process that was given none.
func DefaultProcess() Process { return Process{Profile: "balanced"} }

// Profiles are what the setting of this name chooses; docs/operate/configuration.md says why.
var Profiles = map[string]map[string]string{
	"balanced": {},
	"latency": {
		"subscriber_queue_bytes":    "1048576",
		"subscriber_queue_capacity": "128",
		"cache_stream_recv_window":  "131072",
	},
	"throughput": {
		"subscriber_max_bytes_per_write": "262144",
		"subscriber_queue_bytes":         "16777216",
		"subscriber_queue_capacity":      "2048",
		"cache_stream_recv_window":       "1048576",
	},
}
