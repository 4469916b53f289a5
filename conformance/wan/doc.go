// Package wan is several machines in one: it starts edges, shields and an
// origin node as processes of their own, and puts between them lines that are
// as slow, as narrow and as unreliable as those between regions. There is no
// need of the kernel for that, nor of root.
//
// A [Link] is one line: a TCP proxy whose bytes take time. An [Upstream] is the
// registry behind it all, whose blobs of any size cost no disk. A [Topology] is
// nodes chained by links. A [Client] measures single requests, and a [Load]
// makes many, checks what each brought, and tells what went wrong and
// when it was well again. [Table] and [Bars] print what came of it.
//
// Everything here belongs to a test, as in package lab: what a function
// starts, the end of the test stops; what goes wrong in it fails the test.
package wan
