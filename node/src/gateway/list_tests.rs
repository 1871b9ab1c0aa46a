#![allow(clippy::unwrap_used)]

use charthold_replica::store::table::{ChartAddress, RecordAddress};
use proptest::prelude::*;

use super::*;

fn request() -> ListRequest {
    let context = charthold_proto::v1::RequestContext { actor: "dr".to_owned(), ..Default::default() };
    let chart = charthold_proto::v1::ChartRef { kind: 1, id: "p".to_owned() };
    ListRequest { context: Some(context), chart: Some(chart), ..Default::default() }
}

#[track_caller]
fn takes(request: &ListRequest, date: &str, status: &str) -> bool {
    let header = RecordHeader { clinical_date: date.to_owned(), status: status.to_owned(), ..Default::default() };
    validate_list(request).ok().unwrap().0.takes(&header, clinical_date::interval(date))
}

#[test]
fn a_partial_date_is_in_every_range_that_it_overlaps() {
    let between =
        |from: &str, to: &str| ListRequest { clinical_from: from.to_owned(), clinical_to: to.to_owned(), ..request() };
    let year = between("2024", "2025");
    for inside in ["2024", "2024-12", "2024-01-01", "2024-12-31T23:59:59Z", "2025-01-01T00:30+01:00"] {
        assert!(takes(&year, inside, ""), "{inside}");
    }
    for outside in ["2023", "2025", "2025-01-01", "2023-12-31T23:59:59", "", "yesterday"] {
        assert!(!takes(&year, outside, ""), "{outside}");
    }
    let days = between("2024-12-24", "2024-12-27");
    assert!(takes(&days, "2024", "") && takes(&days, "2024-12", "") && takes(&days, "2024-12-26", ""));
    assert!(!takes(&days, "2024-11", "") && !takes(&days, "2024-12-27", ""));
    assert!(takes(&between("2024", ""), "2030", "") && !takes(&between("2024", ""), "2023", ""));
    assert!(takes(&between("", "2024"), "1950", "") && !takes(&between("", "2024"), "2024", ""));
    assert!(takes(&request(), "yesterday", ""), "without a range no date is asked for");
}

#[test]
fn statuses_and_deletions() {
    let two = ListRequest { status: vec!["final".to_owned(), "amended".to_owned()], ..request() };
    assert!(
        takes(&two, "", "final") && takes(&two, "", "amended") && !takes(&two, "", "") && !takes(&two, "", "Final")
    );
    let deleted = RecordHeader { deleted: true, ..Default::default() };
    assert!(!Filter::default().takes(&deleted, None));
    assert!(Filter { include_deleted: true, ..Filter::default() }.takes(&deleted, None));
}

#[test]
fn bad_fields_are_named() {
    let check = |request: ListRequest, field: &str| {
        let Err(GatewayError::Invalid(violations)) = validate_list(&request) else { panic!("{field} is accepted") };
        assert_eq!(violations.iter().map(|violation| violation.field.as_str()).collect::<Vec<_>>(), [field]);
    };
    let date = |text: &str| text.to_owned();
    check(ListRequest { order: 3, ..request() }, "order");
    check(ListRequest { clinical_from: date("soon"), ..request() }, "clinical_from");
    check(ListRequest { clinical_to: date("2024-13"), ..request() }, "clinical_to");
    check(ListRequest { clinical_from: date("2024"), clinical_to: date("2024-01"), ..request() }, "clinical_to");
    check(ListRequest { status: vec!["s".to_owned(); 17], ..request() }, "status");
    check(ListRequest { status: vec![String::new()], ..request() }, "status");
}

fn record_at(record: u8) -> RecordAddress {
    let chart = ChartAddress { slot: 0, tenant: [0; 16], chart: [0; 16] };
    RecordAddress { chart, record_type: [0; 16], record: [record; 16] }
}

proptest! {
    #[test]
    fn keys_sort_as_dates_do(records in prop::collection::vec((prop::option::of(any::<i64>()), 0..4_u64, any::<u8>()), 2)) {
        let key = |order, (begins_us, seq, record): (Option<i64>, u64, u8)| {
            let date = begins_us.map(|begins_us| Interval { begins_us, ends_us: i64::MAX });
            sort_key(order, date, (seq, &record_at(record)))
        };
        let [a, b] = [records[0], records[1]];
        let undated = |record: (Option<i64>, u64, u8)| record.0.is_none();
        let oldest = (undated(a), a).cmp(&(undated(b), b));
        prop_assert_eq!(key(Order::OldestFirst, a).cmp(&key(Order::OldestFirst, b)), oldest);
        let newest = undated(a).cmp(&undated(b)).then((b.0, b.1).cmp(&(a.0, a.1))).then(a.2.cmp(&b.2));
        prop_assert_eq!(key(Order::NewestFirst, a).cmp(&key(Order::NewestFirst, b)), newest);
    }
}

#[test]
fn a_page_ends_at_its_rows_and_at_its_bytes() {
    let header = |bytes: usize| RecordHeader { author: "a".repeat(bytes), ..Default::default() };
    let mut page = Headers::new(2);
    assert!(page.add(header(1)) && page.add(header(1)) && !page.add(header(1)));
    let mut page = Headers::new(1_000);
    assert!(page.add(header(PAGE_BYTES_MAX + 1)), "the first has room always");
    assert!(!page.add(header(1)));
    let mut page = Headers::new(1_000);
    let fitting = (0..1_000).take_while(|_| page.add(header(10_000))).count();
    assert_eq!(fitting, PAGE_BYTES_MAX / header(10_000).encoded_len());
}
