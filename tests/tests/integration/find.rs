//! Charts by an identifier: what is found, what is not any more, and what is left over in the index.

use charthold_client::{Chart, ChartKind, Client, FindQuery, Match, Mutation, Put, RecordId, Role};
use charthold_tests::harness::{Cluster, Options, until};
use charthold_tests::patients;

const MRN: &str = "https://hospital.example/mrn";

fn patient(number: &str) -> Put {
    Put::new("text/plain", "a patient").with_index_term(MRN, number)
}

fn id(name: &str) -> RecordId {
    RecordId::new("Patient", name)
}

async fn find(client: &Client, number: &str) -> Vec<Match> {
    client.find_charts(FindQuery::new(MRN, number)).all().await.unwrap()
}

fn charts(found: &[Match]) -> Vec<String> {
    let mut charts: Vec<_> = found.iter().map(|found| found.chart.id().to_owned()).collect();
    charts.sort();
    charts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_record_holds_now_is_found_at_every_gateway() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let charts_of = ["p1", "p2", "p3"];
    for (number, name) in charts_of.iter().enumerate() {
        client.put(&Chart::patient(*name), &id(name), patient(&number.to_string())).await.unwrap();
        for node in 0..cluster.size() {
            // Answered by one gateway, found at each of them at once.
            let found = find(&cluster.client_at(node), &number.to_string()).await;
            let expected = Match { chart: Chart::patient(*name), record: id(name), version: 1 };
            assert!(found == [expected], "node {node}: {}", found.len());
        }
    }
    let header = client.get(&Chart::patient("p1"), &id("p1")).await.unwrap().header;
    assert_eq!((header.index_terms[0].system.as_str(), header.index_terms[0].value.as_str()), (MRN, "0"));

    // Two charts and a shared one hold the same number; one record holds it twice over.
    client.put(&Chart::patient("p2"), &id("p2"), patient("same").with_index_term(MRN, "1")).await.unwrap();
    client.put(&Chart::patient("p3"), &id("p3"), patient("same").with_index_term(MRN, "same")).await.unwrap();
    let visit = RecordId::new("Encounter", "e1");
    client.put(&Chart::shared("Visits"), &visit, patient("same")).await.unwrap();
    assert_eq!(charts(&find(&client, "same").await), ["Visits", "p2", "p3"]);
    let of_type = client.find_charts(FindQuery::new(MRN, "same").of_type("Patient")).all().await.unwrap();
    assert_eq!(charts(&of_type), ["p2", "p3"]);
    let shared = client.find_charts(FindQuery::new(MRN, "same").in_charts_of(ChartKind::Shared)).all().await.unwrap();
    assert_eq!(charts(&shared), ["Visits"]);
    assert_eq!(charts(&find(&client, "1").await), ["p2"], "the older number is still held");
    assert!(find(&client, "2").await.is_empty(), "its record has another number now");
    assert!(client.find_charts(FindQuery::new("urn:other", "same")).all().await.unwrap().is_empty());

    // Deleted, put without, put back.
    client.delete(&Chart::patient("p3"), &id("p3"), 2).await.unwrap();
    client.put(&Chart::shared("Visits"), &visit, Put::new("text/plain", "no number")).await.unwrap();
    assert_eq!(charts(&find(&client, "same").await), ["p2"]);
    client.put(&Chart::patient("p3"), &id("p3"), patient("same")).await.unwrap();
    let found = find(&client, "same").await;
    assert_eq!(charts(&found), ["p2", "p3"]);
    assert!(found.iter().any(|found| found.chart == Chart::patient("p3") && found.version == 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_charts_come_page_by_page_and_one_tenants_only() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let names: Vec<String> = (10..35).map(|number| format!("p{number}")).collect();
    for name in &names {
        client.put(&Chart::patient(name), &id(name), patient("shared")).await.unwrap();
    }
    let query = FindQuery::new(MRN, "shared");
    let (mut found, mut token) = (Vec::new(), None);
    loop {
        let page = client.find_page(&query, 7, token.as_ref()).await.unwrap();
        assert!(page.items.len() <= 7 && page.position.is_empty());
        found.extend(page.items);
        token = page.next;
        if token.is_none() {
            break;
        }
        let other = FindQuery::new(MRN, "other");
        let refused = client.find_page(&other, 7, token.as_ref()).await.unwrap_err().to_string();
        assert!(refused.contains("page_token"), "{refused}");
    }
    assert_eq!(charts(&found), names);

    let reader = cluster.service("reader", &[Role::Reader]).await;
    assert_eq!(find(&reader, "shared").await.len(), names.len());
    let writer = cluster.service("writer", &[Role::Writer]).await;
    assert!(writer.find_charts(query.clone()).all().await.is_err(), "who may not read may not find");
    let operator = cluster.operator().admin();
    let other = operator.create_tenant("other").await.unwrap().uid;
    let principal = cluster.issue_service(&other, "elsewhere");
    operator.add_grant(&principal, &[Role::Reader]).await.unwrap();
    assert!(find(&cluster.connect("elsewhere", None), "shared").await.is_empty(), "of another tenant");
}

/// Commits that fail leave rows behind; so do records that change. They are dropped, and what is held is not.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_disappear_and_nothing_else_does() {
    let config = "[limits]\nindex_sweep_after_s = 1\n".to_owned();
    let cluster = Cluster::start_with(Options { sites: 3, config, ..Options::default() }).await;
    let client = cluster.client();
    let held = Chart::patient("held");
    client.put(&held, &id("held"), patient("7")).await.unwrap();
    for number in 0..3 {
        let chart = Chart::patient(format!("failed{number}"));
        let failed = Mutation::put(id("x"), patient("7")).if_version(9);
        assert!(client.commit(&chart, vec![failed]).await.is_err());
    }
    let changed = Chart::patient("changed");
    client.put(&changed, &id("changed"), patient("7")).await.unwrap();
    client.put(&changed, &id("changed"), patient("8")).await.unwrap();
    assert_eq!(charts(&find(&client, "7").await), ["held"]);

    // A page is as many rows as asked for, before they are verified: so leftovers show as pages with less.
    let rows = async || {
        let (mut rows, mut token) = (0, None);
        loop {
            let page = client.find_page(&FindQuery::new(MRN, "7"), 1, token.as_ref()).await.unwrap();
            token = page.next;
            if token.is_none() {
                return rows + page.items.len();
            }
            rows += 1;
        }
    };
    until("the leftovers are dropped", || async {
        match rows().await {
            1 => Ok(()),
            rows => Err(format!("{rows} rows")),
        }
    })
    .await;
    assert_eq!(charts(&find(&client, "7").await), ["held"]);
    assert_eq!(charts(&find(&client, "8").await), ["changed"]);
    // The same number may come again.
    client.put(&changed, &id("changed"), patient("7")).await.unwrap();
    assert_eq!(charts(&find(&client, "7").await), ["changed", "held"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_patients_are_found_at_a_terminal() {
    let numbers = [2, 7];
    let cluster = Cluster::start(1).await;
    let files = numbers.map(|number| patients::file(number).to_str().unwrap().to_owned());
    let import = ["import", &files[0], &files[1]];
    cluster.cli(&import).await.ok();
    let again = cluster.cli(&import).await.ok();
    assert!(again.text().contains(" 0 stored"), "{again:?}");
    for number in numbers {
        let bundle = patients::bundle(number);
        let patient = bundle.entries.iter().find(|entry| entry.record_type == "Patient").unwrap();
        assert!(!patient.identifiers.is_empty());
        for identifier in &patient.identifiers {
            let term = ["--system", &identifier.system, "--value", &identifier.value];
            let arguments = [&["chart", "find", "--type", "Patient", "--output", "json"], &term[..]].concat();
            let found = cluster.cli(&arguments).await.ok().json();
            let found = found.as_array().unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!((&found[0]["kind"], found[0]["chart"].as_str()), (&"patient".into(), Some(patient.id.as_str())));
        }
    }
    let nobody = cluster.cli(&["chart", "find", "--system", MRN, "--value", "0"]).await.ok();
    assert_eq!(nobody.text().lines().count(), 1, "only the names of columns: {nobody:?}");
    let note = ["record", "put", "--patient", "p1", "--type", "Note", "--id", "n1", "--index"];
    let term = format!("{MRN}|47|11");
    cluster.cli_with("client", &[&note[..], &[term.as_str()]].concat(), b"x").await.ok();
    let found = cluster.cli(&["chart", "find", "--system", MRN, "--value", "47|11"]).await.ok();
    assert!(found.text().contains("p1"), "{found:?}");
    assert_eq!(cluster.cli_with("client", &[&note[..], &["nothing"]].concat(), b"x").await.code, 2);
}
