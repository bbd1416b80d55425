//! Where objects go: a bucket, or a directory with the same keys below it. An object is created
//! once and never replaced.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use caracal_model::Clock;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload,
};

use crate::ExportError;
use crate::config::Config;
use crate::s3;

const CONTENT_TYPE: &str = "application/octet-stream";

/// A bucket or a directory.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    attributes: Attributes,
}

impl Bucket {
    /// Opens what the settings name; `None` when they name nothing. A directory is made when it is
    /// not there; a bucket is not asked yet.
    ///
    /// # Errors
    /// When the directory cannot be used, or the settings of the bucket do not fit together.
    pub fn open(
        config: &Config,
        extra_ca: Option<&FilePath>,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, ExportError> {
        if let Some(dir) = &config.dir {
            return Self::directory(dir).map(Some);
        }
        let Some(bucket) = &config.bucket else {
            return Ok(None);
        };
        let store = s3::open(config, bucket, extra_ca, clock)?;
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, AttributeValue::from(CONTENT_TYPE));
        Ok(Some(Self {
            store: Arc::new(store),
            attributes,
        }))
    }

    /// A directory, made for its owner alone when it is not there.
    ///
    /// # Errors
    /// When it cannot be made or used.
    pub fn directory(dir: &FilePath) -> Result<Self, ExportError> {
        let mut making = DirBuilder::new();
        let made = making.recursive(true).mode(0o700).create(dir);
        made.map_err(|source| ExportError::File {
            doing: "making AUDIT_EXPORT_DIR",
            source,
        })?;
        let store = LocalFileSystem::new_with_prefix(dir)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            attributes: Attributes::new(),
        })
    }

    /// Creates an object; when there is one of that key, answers with what it holds.
    pub(crate) async fn create(
        &self,
        key: &str,
        contents: Bytes,
    ) -> Result<Option<Bytes>, ExportError> {
        let path = Path::from(key);
        let options = PutOptions {
            mode: PutMode::Create,
            attributes: self.attributes.clone(),
            ..PutOptions::default()
        };
        let put = self
            .store
            .put_opts(&path, PutPayload::from_bytes(contents), options)
            .await;
        match put {
            Ok(_) => Ok(None),
            Err(object_store::Error::AlreadyExists { .. }) => {
                Ok(Some(self.store.get(&path).await?.bytes().await?))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead as _, BufReader, Write as _};

    use caracal_net::settings::Mistakes;

    use super::*;

    #[tokio::test]
    async fn an_object_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::directory(&dir.path().join("made")).unwrap();
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        assert_eq!(bucket.create("a/b", one.clone()).await.unwrap(), None);
        assert_eq!(bucket.create("a/b", two).await.unwrap(), Some(one));
        assert_eq!(std::fs::read(dir.path().join("made/a/b")).unwrap(), b"one");
    }

    /// Refuses one request after another, and repeats all that it was shown.
    fn parrot() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = |stream: std::net::TcpStream| -> Option<()> {
            let mut answers = stream.try_clone().ok()?;
            let heads = BufReader::new(stream).lines().map_while(Result::ok);
            let head: Vec<String> = heads.take_while(|line| !line.is_empty()).collect();
            let said = head.join(" ");
            let size = said.len();
            let closes = "connection: close\r\n\r\n";
            let answer = format!("HTTP/1.1 403 No\r\ncontent-length: {size}\r\n{closes}{said}");
            answers.write_all(answer.as_bytes()).ok()
        };
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream);
            }
        });
        url
    }

    #[tokio::test]
    async fn what_a_server_repeats_of_its_credentials_is_not_told() {
        let keys = ["AKIACANARY5E99", "canary-key-6f00", "canary-session-7a11"];
        let endpoint = parrot();
        let settings = [
            ("AUDIT_EXPORT_S3_BUCKET", "b"),
            ("AUDIT_EXPORT_S3_ENDPOINT", &*endpoint),
            ("AWS_ACCESS_KEY_ID", keys[0]),
            ("AWS_SECRET_ACCESS_KEY", keys[1]),
            ("AWS_SESSION_TOKEN", keys[2]),
        ];
        let from: BTreeMap<String, String> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let config = Config::read(&from, &mut Mistakes::default()).unwrap();
        let clock = Arc::new(caracal_crypto::os::SystemClock::new());
        let bucket = Bucket::open(&config, None, clock).unwrap().unwrap();
        let refused = bucket.create("a/b", Bytes::from_static(b"one")).await;
        let error = refused.unwrap_err();
        let told = error.to_string();
        assert!(told.contains("status code: 403"), "{told}");
        assert!(keys.iter().all(|key| !told.contains(key)), "{told}");
        // An id of a key is no secret.
        let shown = format!("{bucket:?} {config:?}");
        let mut secrets = keys.iter().skip(1);
        assert!(secrets.all(|key| !shown.contains(key)), "{shown}");
        let ExportError::Bucket(theirs) = &error else {
            panic!("{error}");
        };
        assert!(
            theirs.to_string().contains(keys[2]),
            "it was repeated: {theirs}"
        );
    }
}
