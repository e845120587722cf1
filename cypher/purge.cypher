// purgeable //
// [last id of the page, [[id, whether all of it goes, keys of the versions that go], ...]]: history of the local store $store
// that no moment since $before needs, ISO 8601 text. $after: last id of the page before. $limit: memories. Of versions that
// were captured before $before the newest stays, since it was the state of the memory then; the current one stays in any
// case. A tombstone goes as a whole, if no other store has a part in it.
MATCH (m:Memory) WHERE m.id > $after AND m.origin = $store
WITH m ORDER BY m.id LIMIT $limit
WITH collect(m) AS page
WITH page, datetime($before) AS before
CALL (page, before) {
  UNWIND page AS m
  WITH m, before, coalesce(m.deleted_at < before, false)
    AND NOT EXISTS { (m)-[:HAS_VERSION]->(other:MemoryVersion) WHERE other.origin <> $store } AS goes
  CALL (m, before, goes) {
    MATCH (m)-[:HAS_VERSION]->(v:MemoryVersion)
    WHERE goes OR (v.changed_at < before AND v.sync_version <= m.sync_version)
    WITH m, goes, v ORDER BY v.sync_version DESC, v.changed_at DESC
    WITH m, goes, collect(v) AS versions
    RETURN [v IN CASE WHEN goes THEN versions ELSE versions[1..] END
      WHERE goes OR (v.origin = $store AND NOT (v.sync_version = m.sync_version AND v.content_hash = m.content_hash
        AND (v.operation = 'delete') = (m.deleted_at IS NOT NULL))) | v.key] AS keys
    UNION ALL
    WITH m WHERE NOT EXISTS { (m)-[:HAS_VERSION]->(:MemoryVersion) }
    RETURN [] AS keys
  }
  RETURN collect([m.id, goes, [key IN keys WHERE key IS NOT NULL]]) AS found
}
RETURN [last(page).id, found] AS page

// purgeable_of //
// The same of the memories $memory_ids that are there, whichever store they are of, and without a page's end: of one that is
// deleted everything, of one that lives all versions but the current one.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
WITH m, m.deleted_at IS NOT NULL AS goes
CALL (m, goes) {
  MATCH (m)-[:HAS_VERSION]->(v:MemoryVersion)
  WHERE goes OR NOT coalesce(v.sync_version = m.sync_version AND v.content_hash = m.content_hash
    AND v.operation <> 'delete', false)
  RETURN collect(v.key) AS keys
}
RETURN collect([m.id, goes, keys]) AS found

// note_purge //
// Keeps since when the history of the local store $store is whole. $before: ISO 8601 text.
MATCH (s:Store {id: $store})
WITH s, datetime($before) AS before
SET s.purged_before = CASE WHEN s.purged_before > before THEN s.purged_before ELSE before END

// purge_versions //
// Removes versions for good; how many were. $rows: {id, keys}, sorted by id. The current one stays, whatever was asked for.
UNWIND $rows AS r
MATCH (m:Memory {id: r.id})
// Takes the node's lock before it is read: a push may be changing it.
SET m:Memory
WITH r, m
UNWIND r.keys AS key
MATCH (m)-[:HAS_VERSION]->(v:MemoryVersion {key: key})
WHERE NOT coalesce(v.sync_version = m.sync_version AND v.content_hash = m.content_hash
  AND (v.operation = 'delete') = (m.deleted_at IS NOT NULL), false)
DETACH DELETE v
RETURN count(*) AS removed

// purge_tombstones //
// Removes deleted memories for good, with all their versions; how many were. $memory_ids, sorted. One that lives again stays.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
SET m:Memory
WITH m WHERE m.deleted_at IS NOT NULL
CALL (m) {
  MATCH (m)-[:HAS_VERSION]->(v:MemoryVersion)
  DETACH DELETE v
}
DETACH DELETE m
RETURN count(*) AS removed

// other_stores //
// How many local stores other than $store have written here.
RETURN COUNT { MATCH (s:Store) WHERE s.id <> $store } AS stores
