//! End-to-end tests: the real binary, over the wire, in both deployments.

mod workspace;
