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
}
