package isolation

import "context"

// attack is one thing that tenant A does.
type attack struct {
	name   string
	does   string
	breaks string   // what it would do to B if nothing bounded it
	set    []string // settings of the broker, where the attack needs others
	run    func(ctx context.Context, a *attacker)
}

// attacks are all of them. What a run starts goes on until ctx ends; it returns, or says that it stands, when all is
// set up. What fails ends its step (see check). Rates are bounded where the point is what the broker holds and not how
// fast it works.
var attacks = []attack{
	// What the broker holds for A.
	{
		name: "slow-readers", run: slowReaders,
		does:   "36 subscriptions on 2 connections read 1 KiB of events every 100 ms, while 4 MB/s are published to them",
		breaks: "what they have not read would keep the memory of events, until no publish of B finds any",
	},
	{
		name: "trickling-readers", run: tricklingReaders,
		does:   "500 subscriptions from earliest, with windows of 512 bytes, read 16 bytes every 100 ms",
		breaks: "readers that always move a little would never count as stalled, and keep all they are due",
	},
	{
		name: "bombs", run: bombs,
		does:   "100 compressed batches per second, of which each unfolds to 16 MiB, to subscriptions that do not know compression",
		breaks: "a few KB would become GB in the broker's memory",
	},
	{
		name: "bombs-from-earliest", run: bombsFromEarliest,
		does:   "200 compressed batches that unfold to 16 MiB lie in the replay; subscriptions that do not know compression ask for it",
		breaks: "each would have the whole replay unfolded at once",
	},
	{
		name: "unfinished-small", run: unfinished(1<<20, 1<<10),
		does:   "60 streams on each of 12 connections begin frames of 1 MiB and stop after 1 KiB",
		breaks: "each could hold a chunk of 64 KiB for as long as a frame may take, at the price of 1 KiB",
	},
	{
		name: "unfinished-chunk", run: unfinished(64<<10, 64<<10-1),
		does:   "60 streams on each of 12 connections send frames of 64 KiB without the last byte",
		breaks: "memory below what is charged for large frames would be nobody's, and no bound would hold",
	},
	{
		name: "unfinished-large", run: unfinished(4<<20, 4<<20-1),
		does:   "60 streams on each of 12 connections send frames of 4 MiB without the last byte",
		breaks: "the memory for unfinished frames would be spent, and larger publishes of B would end",
	},
	{
		name: "block-unread-small", run: blockUnread(64),
		does:   "20 publishers fill a stream that blocks, whose subscription is not read, with events of 64 bytes",
		breaks: "publishes that wait would hold the memory that B's publishes need",
	},
	{
		name: "block-unread-large", run: blockUnread(1 << 20),
		does:   "20 publishers fill a stream that blocks, whose subscription is not read, with events of 1 MiB",
		breaks: "publishes that wait would hold the memory that B's publishes need",
	},
	{
		name: "earliest-16384", run: earliest(streamEvents, 4, 4096),
		does:   "4 connections make 4096 subscriptions each from earliest, of a stream with 1 MiB of tiny events, and do not read",
		breaks: "each would hold buffers for its backlog beyond what is counted",
	},
	{
		name: "earliest-one-conn", run: earliest(streamDeep, 1, 2500),
		does:   "one connection makes 2500 subscriptions from earliest, of a stream with a replay of 16 MiB, and does not read",
		breaks: "what is sent to one connection beyond its windows would pile up",
	},
	{
		name: "subscriptions-40900", run: subscriptions,
		does:   "10 connections make 4090 subscriptions each to a stream with 50 events per second, and do not read",
		breaks: "their number alone would take memory and the time of each publish",
	},
	{
		name: "fill-budget", run: fillBudget,
		does:   "events of 64 KiB fill streams with a replay of 128 MiB together",
		breaks: "the replay of B would be emptied for it",
	},
	{
		name: "fill-cache", run: fillCache(64 << 10),
		does:   "puts of 64 KiB under ever new keys, as fast as they are taken",
		breaks: "entries of B would be evicted",
	},
	{
		name: "fill-cache-small", run: fillCache(16),
		does:   "puts of 16 bytes under ever new keys, as fast as they are taken",
		breaks: "what an entry takes besides its value would be nobody's",
	},
	{
		name: "watchers-40000", run: watchers,
		does:   "10 connections watch a cache with 4000 streams each and do not read, while 200 puts per second change it",
		breaks: "every change would be queued 40 000 times",
	},
	{
		name: "unread-replies", run: unreadReplies,
		does:   "200 streams ask for a value of 1 MiB again and again and read no reply",
		breaks: "replies would pile up",
	},
	{
		name: "inline-windows", run: inlineWindows,
		does:   "20 connections grant windows of 2^36 bytes, subscribe, and acknowledge nothing of 4 MB/s",
		breaks: "what is handed to QUIC would be bounded by the attacker's windows alone",
	},
	{
		name: "no-stream-credit", run: noStreamCredit,
		does:   "20 connections without credit for event streams send 200 subscribe requests each, again and again",
		breaks: "requests that wait for credit would hold memory and their connections' replies",
	},
	{
		name: "idle-streams", run: idleStreams,
		does:   "8 connections keep 1024 authenticated streams each and are silent",
		breaks: "an idle stream would cost memory",
	},
	{
		name: "json-large", run: jsonLarge,
		does:   "50 streams publish JSON of 1 MiB, base64 and members that nobody knows, at 20 per second each",
		breaks: "what is decoded would be charged to nobody",
	},

	// What there is a number of.
	{
		name: "max-connections", run: takeConnections(400), set: []string{"FELIX_MAX_CONNECTIONS=200"},
		does:   "400 connections, of a broker that takes 200",
		breaks: "B could not connect",
	},
	{
		name: "connections-500", run: takeConnections(500),
		does:   "500 connections with a subscription each",
		breaks: "memory and time would go with connections of one tenant",
	},
	{
		name: "unauthenticated", run: unauthenticated, set: []string{"FELIX_MAX_UNAUTHENTICATED_CONNECTIONS=100"},
		does:   "connections that never authenticate, 100 at a time, ever new ones",
		breaks: "they would hold the places of those that want to",
	},
	{
		name: "handshakes", run: handshakes,
		does:   "TLS handshakes as fast as one address can, each connection closed at once",
		breaks: "the processor would do nothing but handshakes",
	},
	{
		name: "http-silent", run: httpSilent,
		does:   "64 TCP connections to the metrics and probes that say nothing, and 200 more",
		breaks: "probes would fail, and an orchestrator restart the broker",
	},

	// What the broker computes for A.
	{
		name: "auth-members", run: authFlood(tokenWithMembers),
		does:   "tokens with 10 000 members and a wrong signature, 200 per second",
		breaks: "reading them would take the processor from all others",
	},
	{
		name: "auth-nesting", run: authFlood(tokenWithNesting),
		does:   "tokens of 40 KB of nested lists, 200 per second",
		breaks: "reading them would take the processor from all others",
	},
	{
		name: "auth-permissions", run: authFlood(tokenWithPermissions(1100, "stream.publish:stream:a/ns-%d/orders")),
		does:   "valid tokens with 1100 permissions, 200 per second",
		breaks: "each would be parsed for each stream",
	},
	{
		name: "auth-globs", run: authFlood(tokenWithPermissions(150, "stream.publish:stream:a/*/%d*a*a*a*a*a*a*a*b")),
		does:   "valid tokens with permissions of many stars, 200 per second, and a publish with each",
		breaks: "matching would take time that is exponential in the stars",
	},
	{
		name: "odd-tokens", run: authFlood(oddTokens()),
		does:   "tokens that are damaged in many ways, 200 per second",
		breaks: "one of them would be accepted, or stop the broker",
	},
	{
		name: "permission-globs", run: permissionGlobs,
		does:   "tokens of A that allow all of *, */*, b/* and the like, used for B's stream and cache",
		breaks: "A would read and write what is B's",
	},
	{
		name: "publish-rate", run: publishFlood(8, 1, 16),
		does:   "8 streams publish single events of 16 bytes as fast as they are taken",
		breaks: "B's publishes would wait for them",
	},
	{
		name: "byte-rate", run: publishFlood(4, 16, 64<<10),
		does:   "4 streams publish batches of 1 MiB as fast as they are taken",
		breaks: "B's publishes would wait for them",
	},
	{
		name: "bursts", run: bursts,
		does:   "2 MB in one burst, of single events, five times per second",
		breaks: "the socket's buffer would overflow, and B's packets be lost",
	},
	{
		name: "subscribe-flood", run: subscribeFlood,
		does:   "4 connections subscribe and leave as fast as they can",
		breaks: "each would copy or search the set of subscriptions",
	},
	{
		name: "resets", run: resets,
		does:   "streams that are opened and reset at once, as fast as 4 connections can",
		breaks: "each would cost a goroutine and a log line",
	},
	{
		name: "hot-key", run: hotKey,
		does:   "4 clients ask for one key, with 64 gets under way each",
		breaks: "a lock of that key would be B's as well",
	},
	{
		name: "ttl-storm", run: ttlStorm,
		does:   "puts of entries that live for 1 to 1000 ms, as fast as they are taken",
		breaks: "their ends would come at once, and hold the cache's lock",
	},
	{
		name: "deletes", run: deletes,
		does:   "deletes of keys that are not there and that are, 64 under way on 4 streams",
		breaks: "traces of what was deleted would grow without bound",
	},
	{
		name: "extension-confusion", run: extensionConfusion,
		does:   "extension frames that were not negotiated, of unknown types, of brokers, and cut off, on streams of both kinds",
		breaks: "one of them would stop the broker or be obeyed",
	},
	{
		name: "datagrams", run: datagrams,
		does:   "5000 UDP datagrams per second that are not QUIC, or garbage after a valid first byte",
		breaks: "the socket's reader would do nothing else",
	},

	// What the operator's machinery does because of A.
	{
		name: "tenant-rekeyed", run: tenantRekeyed,
		does:   "A is removed from the catalog and comes back with another key; its old streams go on",
		breaks: "who has been removed would still publish",
	},
	{
		name: "catalog-fifo", run: catalogFIFO,
		does:   "the catalog becomes a FIFO that nobody writes to, and SIGHUP makes the broker read it",
		breaks: "the reload would hang, and with it the end of the broker",
	},
	{
		name: "catalog-bomb", run: catalogBomb,
		does:   "the catalog becomes YAML whose aliases unfold to billions of nodes, and SIGHUP makes the broker read it",
		breaks: "it would unfold them",
	},
	{
		name: "foreign-host", run: foreignHost,
		does:   "a page of another host asks for the metrics (DNS rebinding)",
		breaks: "every web page could read them through an operator's browser",
	},
	{
		name: "token-ends-while-waiting", run: tokenEndsWhileWaiting, set: []string{"FELIX_PUBLISH_QUEUE_WAIT_MS=60000"},
		does:   "a publish waits for space when the token of its stream ends",
		breaks: "it would wait, and hold its memory, without a right to",
	},
}
