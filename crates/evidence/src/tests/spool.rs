//! Files of the reference's producers.

use super::*;

#[tokio::test]
async fn old_files_are_taken_over_before_anything_new() {
    let dir = tempfile::tempdir().unwrap();
    // Not our order of fields, and with one that we do not know: the text stays as it is.
    let foreign = concat!(
        r#"{"zone_id":"zone-1","id":"evt-0","new":1,"#,
        r#""occurred_at":"2026-05-21T12:00:00.123456789Z"}"#
    );
    let lines = |numbers: std::ops::Range<usize>| {
        numbers
            .map(|number| event(number).to_wire() + "\n")
            .collect::<String>()
    };
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "pending-7-100.ndjson",
        format!("{foreign}\n\n{}", lines(1..1_500)),
    );
    write(
        "pending-7-200.ndjson",
        lines(1_500..1_510).trim_end().to_owned(),
    );
    write("unrelated.json", "{}".to_owned());

    let (log, drain) = open(dir.path());
    assert_eq!(log.stats().pending, 1_510);
    record(&log, 1_510..1_512).await;
    let shelf = Arc::new(Shelf::default());
    Running::start(drain, &shelf).stop().await;
    log.close().await;
    assert_eq!(shelf.ids(), ids(0..1_512));
    assert_eq!(shelf.kept.lock()[0].wire, foreign);
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert!(
        !left
            .iter()
            .any(|path| path.to_string_lossy().contains("ndjson")),
        "{left:?}"
    );
    assert!(dir.path().join("unrelated.json").exists());
}

#[tokio::test]
async fn lines_that_are_no_events_are_set_aside_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let good = event(0).to_wire();
    let bad: [&[u8]; 3] = [b"{\"id\":\"cut of", b"\xff\xfe", b"{\"id\":\"no-zone\"}"];
    let text = [bad[0], b"\n", good.as_bytes(), b"\n", bad[1], b"\n", bad[2]].concat();
    std::fs::write(dir.path().join("pending-1-1.ndjson"), text).unwrap();

    let (log, _drain) = open(dir.path());
    let stats = log.stats();
    assert_eq!((stats.pending, stats.files), (1, 2));
    log.close().await;
    assert_eq!(on_disk(dir.path()), ids(0..1));
    let aside = std::fs::read(dir.path().join("pending-1-1.ndjson.rejected")).unwrap();
    assert_eq!(aside, bad.join(&b'\n'));
    // The next start leaves it where it is.
    let (log, _drain) = open(dir.path());
    assert_eq!(log.stats().files, 2);
    log.close().await;
}

#[tokio::test]
async fn a_file_that_an_earlier_process_had_claimed_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let claimed = dir.path().join("pending-1-1.ndjson.importing-test");
    std::fs::write(&claimed, event(0).to_wire()).unwrap();
    let others = dir.path().join("pending-1-2.ndjson.importing-other");
    std::fs::write(&others, event(1).to_wire()).unwrap();
    let (log, _drain) = open(dir.path());
    assert_eq!(log.stats().pending, 1);
    log.close().await;
    assert!(!claimed.exists() && others.exists());
}
