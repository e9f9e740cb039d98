// Command mnsrelay moves messages from Alibaba Cloud MNS queues to RabbitMQ and to
// webhooks, and deletes them only once the far side has confirmed.
//
// The commands are a file each. They parse flags and print; the work is done by the
// packages under internal.
package main

import (
	"context"
	"os"
	_ "time/tzdata" // conditions name time zones, and an image from scratch has no list of them
)

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
