package relay

// NewWithIdle is New with another time of silence.
var NewWithIdle = newRelay
