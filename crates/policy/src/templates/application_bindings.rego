# caracal:data-document
package caracal.authz

import rego.v1

# The name on the left is what `grants` calls the application; the id on the right is its id.
app_ids := {"support-desk": "replace-with-application-id"}
