# caracal:data-document
package caracal.authz

import rego.v1

# A role is a label of a Session. One label must cover every scope that is asked for.
grants := {"resource://tickets": {
	"application": "support-desk",
	"roles": {
		"reader": ["tickets:read"],
		"clerk": ["tickets:read", "tickets:write"],
	},
}}
