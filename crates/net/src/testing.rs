//! Certificates for the tests of whoever speaks TLS.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot have its certificates has failed"
)]

use std::path::Path;
use std::process::Command;

/// A root, and a certificate of `localhost` that it vouches for: `NAME-ca.pem`, `NAME.pem` and
/// `NAME.key` in this directory, made with the `openssl` of the command line.
///
/// # Panics
/// When that is not there.
pub fn authority(at: &Path, name: &str) {
    let run = |line: &str| {
        let done = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(at)
            .output()
            .expect("openssl runs");
        assert!(done.status.success(), "{done:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!(
        "req -x509 {key} -days 2 -subj /CN={name} -keyout {name}-ca.key -out {name}-ca.pem"
    ));
    let extensions = at.join(format!("{name}.ext"));
    std::fs::write(
        &extensions,
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )
    .expect("the directory is ours");
    run(&format!(
        "req -new {key} -subj /CN=server -keyout {name}.key -out {name}.csr"
    ));
    run(&format!(
        "x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -CAcreateserial -days 2 \
         -extfile {name}.ext -out {name}.pem"
    ));
}
