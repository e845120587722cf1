// save_incidents //
// Puts incidents on record, or widens those that are: what was seen earliest and latest of each stays, and a closed one stays
// closed, whatever the order in which the states come. $rows: maps as adapters/neo4j/incidents.py makes them, times as
// ISO 8601 text.
UNWIND $rows AS r
MERGE (i:Incident {id: r.id})
// Takes the node's lock before it is read.
SET i:Incident
WITH r, i, r.revision >= coalesce(i.revision, 0) AS newer, i.role IS NULL AND i.pid IS NULL AS nobody
SET i.kind = CASE WHEN newer OR i.kind IS NULL THEN r.kind ELSE i.kind END,
    i.summary = CASE WHEN newer OR i.summary IS NULL THEN r.summary ELSE i.summary END,
    i.key = r.key, i.store = r.store,
    i.detected_at = CASE WHEN i.detected_at < datetime(r.detected_at) THEN i.detected_at ELSE datetime(r.detected_at) END,
    i.restore_point = CASE
      WHEN r.revision < i.revision OR r.revision = i.revision AND i.restore_point < datetime(r.restore_point)
        THEN i.restore_point
      ELSE datetime(r.restore_point) END,
    i.last_at = CASE WHEN i.last_at > datetime(r.last_at) THEN i.last_at ELSE datetime(r.last_at) END,
    i.rows = CASE WHEN i.rows > r.rows THEN i.rows ELSE r.rows END,
    i.closed_reason = CASE WHEN i.closed_at IS NULL THEN r.closed_reason ELSE i.closed_reason END,
    i.spans = CASE WHEN newer OR i.spans IS NULL THEN r.spans ELSE i.spans END,
    i.revision = CASE WHEN newer THEN r.revision ELSE i.revision END
SET i.closed_at = coalesce(i.closed_at, datetime(r.closed_at))
FOREACH (_ IN CASE WHEN nobody THEN [1] ELSE [] END |
  SET i.role = r.role, i.application_name = r.application_name, i.client_address = r.client_address, i.pid = r.pid,
      i.statement = r.statement
)
RETURN count(i) AS saved

// incidents //
// Incidents in the field order of adapters/neo4j/incidents.py, newest first. $open_only: none that is closed. $stores: of these
// local stores, null for all. $after_at, $after_id: those after the one that was detected then, ISO 8601 text, null for all.
// $limit: how many.
MATCH (i:Incident) WHERE (NOT $open_only OR i.closed_at IS NULL) AND ($stores IS NULL OR i.store IN $stores)
  AND ($after_at IS NULL OR i.detected_at < datetime($after_at) OR i.detected_at = datetime($after_at) AND i.id > $after_id)
WITH i ORDER BY i.detected_at DESC, i.id LIMIT $limit
RETURN collect([i.id, i.key, i.kind, i.store, toString(i.detected_at), toString(i.restore_point), toString(i.last_at), i.rows,
  i.summary, toString(i.closed_at), i.closed_reason, i.revision, i.role, i.application_name, i.client_address, i.pid,
  i.statement, i.spans]) AS page

// note_place //
// The local store $store is at $place now, with the table $table, as was seen at $seen_at. Of a store only: a node that no
// push has made yet stays to be made by one.
MATCH (s:Store {id: $store})
SET s.place = $place, s.place_table = $table, s.place_seen_at = datetime($seen_at)
RETURN count(s) AS noted

// stores_at //
// [store, table, when it was seen or pushed last] of the local stores that were at $place, the newest first.
MATCH (s:Store {place: $place}) WHERE s.place_seen_at IS NOT NULL
WITH s, CASE WHEN s.last_push_at > s.place_seen_at THEN s.last_push_at ELSE s.place_seen_at END AS at
ORDER BY at DESC, s.id
RETURN collect([s.id, s.place_table, toString(at)]) AS stores
