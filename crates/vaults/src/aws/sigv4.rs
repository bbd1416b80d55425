//! Signature Version 4, as AWS documents it: a canonical form of the request, under a key that is
//! derived for one day, region and service.

use caracal_crypto::HmacKey;
use caracal_crypto::digest::sha256_hex;
use caracal_model::{Secret, Timestamp};

use super::credentials::Credentials;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Signs for one region and service, at one moment.
pub struct Signing<'a> {
    /// Whose.
    pub credentials: &'a Credentials,
    /// Where.
    pub region: &'a str,
    /// What.
    pub service: &'a str,
    /// When; the same as in `x-amz-date`.
    pub at: Timestamp,
}

/// `20150830T123600Z`.
pub fn amz_date(at: Timestamp) -> String {
    at.iso_seconds().replace(['-', ':'], "")
}

impl Signing<'_> {
    /// The value of `Authorization`. Headers are given with lower-case names, in their order.
    pub fn authorization(
        &self,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> String {
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}:{}\n", value.trim()));
        let lines: String = lines.collect();
        let body = sha256_hex(body);
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{body}");
        let date = amz_date(self.at);
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let hashed = sha256_hex(canonical.as_bytes());
        let message = format!("{ALGORITHM}\n{date}\n{scope}\n{hashed}");
        let signature = self.key(day).sign_hex(message.as_bytes());
        format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.credentials.key_id
        )
    }

    fn key(&self, day: &str) -> HmacKey {
        let secret = format!("AWS4{}", self.credentials.secret.expose());
        let first = HmacKey::from_bytes(Secret::new(secret.into_bytes()));
        let parts = [day, self.region, self.service, "aws4_request"];
        parts.iter().fold(first, |key, part| {
            HmacKey::from_bytes(Secret::new(key.sign(part.as_bytes()).to_vec()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published example key.
    fn credentials() -> Credentials {
        Credentials {
            key_id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        }
    }

    fn signed(service: &str, query: &str, headers: &[(&str, &str)]) -> String {
        let signing = Signing {
            credentials: &credentials(),
            region: "us-east-1",
            service,
            at: Timestamp::parse_utc("2015-08-30T12:36:00Z").unwrap(),
        };
        signing.authorization("GET", "/", query, headers, b"")
    }

    #[test]
    fn the_published_examples_are_signed_as_published() {
        // `get-vanilla` of the test suite.
        let headers = [
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        assert_eq!(
            signed("service", "", &headers),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        // `ListUsers` of the guide.
        let headers = [
            (
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            ),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let listed = signed("iam", "Action=ListUsers&Version=2010-05-08", &headers);
        let signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        assert!(listed.ends_with(signature), "{listed}");
    }
}
