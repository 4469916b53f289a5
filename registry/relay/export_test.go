package relay

// For tests outside, which play nodes that do what no Handler and no Client does.
const (
	HelloFrame   = helloFrame
	PieceFrame   = pieceFrame
	EndFrame     = endFrame
	DeltaFrame   = deltaFrame
	ConfirmFrame = confirmFrame
	ByeFrame     = byeFrame

	MaxReport      = maxReport
	MaxQuestion    = maxQuestion
	StreamsPerNode = streamsPerNode
	BoardLimit     = boardLimit
)

// AppendFrame makes a frame.
func AppendFrame(b []byte, kind byte, payload []byte) []byte { return appendFrame(b, kind, payload) }
