//! End-to-end tests: the real binary, over the wire, in both deployments.

mod answering;
mod approvals;
mod canary;
mod capacity;
mod cli;
mod clients;
mod collector;
mod custody;
mod drills;
mod evidence;
mod faults;
mod federation;
mod governed_call;
mod identity;
mod launch;
mod leaders;
mod lineage;
mod malformed;
mod providers;
mod replay;
mod replicas;
mod revocation;
mod traces;
mod workspace;
