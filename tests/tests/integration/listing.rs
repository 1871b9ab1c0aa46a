//! Lists, histories and reads as of a position, as a service and as somebody at a terminal ask for them.

use charthold_client::{Chart, Client, Header, ListQuery, Mutation, Order, Put, RecordId};
use charthold_tests::harness::Cluster;
use charthold_tests::listing::holds_still;

/// Enough for ten pages in each order; `--long listing::of_100_000_records` is the same with more.
const RECORDS: usize = 5_000;
const PAGE_ROWS: u32 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_still_while_the_chart_is_written_to() {
    let cluster = Cluster::start(3).await;
    let listed = holds_still(&cluster.client(), RECORDS, PAGE_ROWS).await;
    assert!(listed[..3].iter().all(|listed| listed.pages >= 10), "a listing of one page proves nothing");
}

/// id, date, status
const NOTES: [(&str, &str, &str); 7] = [
    ("year", "2024", "final"),
    ("month", "2024-05", "final"),
    ("day", "2024-05-13", "amended"),
    ("morning", "2024-05-13T08:30:00+02:00", "final"),
    ("instant", "2024-05-13T06:29:59.5Z", "preliminary"),
    ("undated", "", "final"),
    ("odd", "in spring", "final"),
];

async fn fill(client: &Client, chart: &Chart) -> String {
    for (id, date, status) in NOTES {
        let put = Put { clinical_date: date.into(), status: status.into(), ..Put::new("text/plain", id) };
        client.put(chart, &RecordId::new("Note", id), put).await.unwrap();
    }
    let task = Put { clinical_date: "2024-06".into(), ..Put::new("text/plain", "task") };
    client.put(chart, &RecordId::new("Task", "task"), task).await.unwrap().position
}

fn ids(headers: &[Header]) -> Vec<&str> {
    headers.iter().map(|header| header.record.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_type_time_and_status_in_either_order() {
    let cluster = Cluster::start(1).await;
    let (client, chart) = (cluster.client(), Chart::patient("p1"));
    let full = fill(&client, &chart).await;
    let check = async |query: ListQuery, expected: &[&str]| {
        let whole = client.list_where(&chart, query.clone()).all().await.unwrap();
        assert_eq!(ids(&whole), expected);
        // A page holds one record: the cursor must tell neighbours apart.
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let page = client.list_page(&chart, &query, 1, token.as_ref()).await.unwrap();
            found.extend(page.items);
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(ids(&found), expected, "page by page");
    };
    let oldest = ["year", "month", "day", "instant", "morning", "task", "undated", "odd"];
    let newest = ["task", "morning", "instant", "day", "month", "year", "odd", "undated"];
    check(ListQuery::default().oldest_first(), &oldest).await;
    check(ListQuery::default().newest_first(), &newest).await;
    check(ListQuery::of_type("Task").newest_first(), &["task"]).await;
    let dated = ListQuery::of_type("Note").oldest_first();
    check(dated.clone().from("2024-05-13").until("2024-05-14"), &oldest[..5]).await;
    check(dated.clone().from("2024-06"), &["year"]).await;
    check(dated.clone().until("2024-05-13T06:29"), &["year", "month", "day"]).await;
    check(dated.clone().with_status("amended").with_status("preliminary"), &["day", "instant"]).await;
    check(dated.clone().from("1999").until("2000"), &[]).await;

    let mut stored = client.list(&chart, None).await.unwrap();
    assert_eq!(stored.len(), oldest.len());
    stored.retain(|header| header.status == "final" && header.record.type_ == "Note");
    let filtered = client.list_where(&chart, ListQuery::of_type("Note").with_status("final")).all().await.unwrap();
    assert_eq!(ids(&filtered), ids(&stored), "a filter keeps the order");

    client.delete(&chart, &RecordId::new("Note", "day"), 1).await.unwrap();
    check(dated.clone().with_status("amended"), &[]).await;
    check(
        ListQuery::default().oldest_first().with_deleted(),
        &["year", "month", "instant", "morning", "task", "undated", "odd", "day"],
    )
    .await;
    let before = client.at_position(&full).list_where(&chart, dated.with_status("amended")).all().await.unwrap();
    assert_eq!(ids(&before), ["day"], "as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_read_as_of_a_position() {
    let cluster = Cluster::start(3).await;
    let (client, chart) = (cluster.client(), Chart::patient("p1"));
    let (first, second) = (RecordId::new("Note", "n1"), RecordId::new("Note", "n2"));
    let text = |text: &str| Put::new("text/plain", text.to_owned());
    let mut positions = vec![client.put(&chart, &first, text("one")).await.unwrap().position];
    for version in 2..=20 {
        positions.push(client.put(&chart, &first, text(&format!("version {version}"))).await.unwrap().position);
    }
    let both = vec![Mutation::delete(first.clone()), Mutation::put(second.clone(), text("two"))];
    client.commit(&chart, both).await.unwrap();

    for (position, version) in positions.iter().zip(1..) {
        let then = client.at_position(position);
        assert_eq!(then.get(&chart, &first).await.unwrap().version(), version);
        assert_eq!(then.history(&chart, &first).await.unwrap().len() as u64, version);
    }
    let then = client.at_position(&positions[4]);
    assert!(then.get(&chart, &second).await.is_err(), "it came later");
    assert!(then.get_version(&chart, &first, 6).await.is_err(), "it came later");
    let batch = then.batch_get(&chart, &[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(batch.iter().map(|found| found.as_ref().map(|it| it.version())).collect::<Vec<_>>(), [Some(5), None]);
    let mut records = then.read_chart(&chart).await.unwrap();
    assert_eq!(records.next().await.unwrap().unwrap().body, "version 5");
    assert!(records.next().await.is_none() && records.position() == positions[4]);
    assert!(client.get(&chart, &first).await.is_err(), "now it is deleted");

    let versions = |headers: Vec<Header>| headers.into_iter().map(|header| header.version).collect::<Vec<_>>();
    let oldest = client.history_in(&chart, &first, Order::OldestFirst).all().await.unwrap();
    assert_eq!(versions(oldest), (1..=21).collect::<Vec<_>>());
    for (order, expected) in [(Order::OldestFirst, [1, 2, 3, 4, 5]), (Order::Any, [5, 4, 3, 2, 1])] {
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let page = then.history_page(&chart, &first, order, 2, token.as_ref()).await.unwrap();
            assert!(page.items.len() <= 2);
            found.extend(versions(page.items));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(found, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal() {
    let cluster = Cluster::start(1).await;
    let position = fill(&cluster.client(), &Chart::patient("p1")).await;
    let listed = async |arguments: &[&str]| {
        let command = [&["record", "list", "--patient", "p1", "--output", "json"], arguments].concat();
        let headers = cluster.cli(&command).await.ok().json();
        let ids = headers.as_array().unwrap().iter().map(|header| header["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    let notes = ["--type", "Note", "--from", "2024-05-13", "--to", "2024-05-14", "--status", "final"];
    assert_eq!(listed(&[&notes[..], &["--newest"]].concat()).await, ["morning", "month", "year"]);
    assert_eq!(listed(&[&notes[..], &["--oldest"]].concat()).await, ["year", "month", "morning"]);
    let usage = cluster.cli(&["record", "list", "--patient", "p1", "--newest", "--oldest"]).await;
    assert_eq!(usage.code, 2);

    let year = ["--patient", "p1", "--type", "Note", "--id", "year"];
    let with = |verb: &[&'static str], more: &[&'static str]| [verb, &year[..], more].concat();
    let body = cluster.cli_with("client", &with(&["record", "put"], &["--output", "json"]), b"second").await.ok();
    assert_eq!(body.json()["version"], 2);
    let versions = cluster.cli(&with(&["record", "history"], &["--oldest", "--output", "json"])).await.ok().json();
    assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&1.into(), &2.into()));
    cluster.cli(&with(&["record", "delete"], &[])).await.ok();
    assert_eq!(cluster.cli(&with(&["record", "get"], &[])).await.code, 3);
    let as_of = ["--as-of", position.as_str()];
    let get = [&["record", "get"], &year[..], &as_of[..]].concat();
    assert_eq!(cluster.cli(&get).await.ok().text(), "year");
    assert_eq!(listed(&as_of).await.len(), NOTES.len() + 1);
    assert_eq!(listed(&["--deleted"]).await.len(), NOTES.len() + 1);
    assert_eq!(listed(&[]).await.len(), NOTES.len());
    let export = cluster.cli(&[&["chart", "export", "p1"], &as_of[..]].concat()).await.ok();
    assert_eq!(export.text().lines().count(), NOTES.len() + 1);
    let nonsense = cluster.cli(&["chart", "export", "p1", "--as-of", "yesterday"]).await;
    assert!(nonsense.code == 1 && nonsense.stderr.contains("as_of"), "{nonsense:?}");
}
