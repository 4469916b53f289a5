package audit

// File is what a test may put in place of the file.
type File = file

// QueueLength is queueLength.
const QueueLength = queueLength

// OpenFile is openFile.
func OpenFile(path string) (File, error) { return openFile(path) }

// WithOpen has the file opened by a test.
func WithOpen(o Options, open func(path string) (File, error)) Options {
	o.open = open
	return o
}
