# caracal:data-document
package caracal.authz

import rego.v1

# A Session with a label such as "customer:42" gets these scopes at most, whatever its role.
confinement := [{"label_prefix": "customer:", "scopes": ["tickets:read"]}]
