# caracal:data-document
package caracal.authz

import rego.v1

# Empty restricts nothing. One entry, such as {"reason": "incident 7"}, denies everything.
restrict := {}
