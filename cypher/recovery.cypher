// states_now //
// A keyset page in the field order of domain.recovery_plan.State; the targets are the current states. $first, $end: bounds of
// the ids, `''` for none. $after: last id of the page before. $limit: rows. $projects, $sessions, $memory_ids: scope, and
// $stores: local stores that have written a version; empty lists mean all.
MATCH (m:Memory)
WHERE m.id > $after AND m.id >= $first AND ($end = '' OR m.id < $end)
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($sessions) = 0 OR m.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR m.id IN $memory_ids)
  AND (size($stores) = 0 OR m.origin IN $stores
    OR EXISTS { (m)-[:HAS_VERSION]->(h:MemoryVersion) WHERE h.origin IN $stores })
WITH m ORDER BY m.id LIMIT $limit
RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, false, m.sync_version, m.content_hash,
  m.deleted_at IS NOT NULL, m.memory_type, m.importance, m.session_id]) AS page

// states_as_of //
// The same; the targets are the newest states that were captured at or before $as_of, ISO 8601 text. What a current state
// says of its own time spares the look at its history. The order is that of versions: of two times, one may be another clock's.
MATCH (m:Memory)
WHERE m.id > $after AND m.id >= $first AND ($end = '' OR m.id < $end)
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($sessions) = 0 OR m.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR m.id IN $memory_ids)
  AND (size($stores) = 0 OR m.origin IN $stores
    OR EXISTS { (m)-[:HAS_VERSION]->(h:MemoryVersion) WHERE h.origin IN $stores })
WITH m ORDER BY m.id LIMIT $limit
WITH m, datetime($as_of) AS as_of
WITH m, as_of, coalesce(m.changed_at <= as_of, false) AS settled
CALL (m, as_of, settled) {
  WITH m, as_of, settled WHERE NOT settled
  MATCH (m)-[:HAS_VERSION]->(h:MemoryVersion)
  WHERE h.changed_at <= as_of AND h.sync_version <= m.sync_version
  WITH h ORDER BY h.sync_version DESC, h.changed_at DESC LIMIT 1
  RETURN head(collect(h)) AS h
}
WITH m, settled, CASE WHEN settled THEN m ELSE h END AS h
RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, false, h.sync_version, h.content_hash,
  CASE WHEN settled THEN m.deleted_at IS NOT NULL ELSE h.operation = 'delete' END,
  h.memory_type, h.importance, h.session_id]) AS page

// states_without //
// The same, where incidents are concerned. $windows: what they did, maps {store, first, last, operation}, times as ISO 8601
// text. The targets are the newest states that none of them made, or, where $as_of is not null, those of that time; and each
// current state is told to be of an incident or not. Rows that were made up after one, under ids of older memories, are of
// the operation `create`: all that was made of them since counts too, and so does the delete that made room for them.
MATCH (m:Memory)
WHERE m.id > $after AND m.id >= $first AND ($end = '' OR m.id < $end)
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($sessions) = 0 OR m.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR m.id IN $memory_ids)
  AND (size($stores) = 0 OR m.origin IN $stores
    OR EXISTS { (m)-[:HAS_VERSION]->(h:MemoryVersion) WHERE h.origin IN $stores })
WITH m ORDER BY m.id LIMIT $limit
WITH collect(m) AS page, datetime($as_of) AS as_of,
  [w IN $windows | {store: w.store, first: datetime(w.first), last: datetime(w.last), operation: w.operation}] AS windows
CALL (page, as_of, windows) {
  UNWIND page AS m
  WITH m, m.changed_at IS NOT NULL AND (as_of IS NULL OR m.changed_at <= as_of)
    AND none(w IN windows WHERE m.changed_at >= w.first AND m.changed_at <= w.last AND m.origin = w.store) AS settled
  RETURN collect(CASE WHEN settled THEN m END) AS clear, collect(CASE WHEN NOT settled THEN m END) AS unclear
}
CALL (clear) {
  UNWIND clear AS m
  RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, false, m.sync_version, m.content_hash,
    m.deleted_at IS NOT NULL, m.memory_type, m.importance, m.session_id]) AS settled
}
CALL (unclear, as_of, windows) {
  UNWIND unclear AS m
  OPTIONAL MATCH (m)-[:HAS_VERSION]->(v:MemoryVersion) WHERE v.sync_version <= m.sync_version
  WITH m, as_of, windows, v ORDER BY v.sync_version DESC, v.changed_at DESC
  WITH m, as_of, windows, collect(v) AS versions
  // What an incident wrote is of its store, its time and its operation. A row is made up where it was inserted after the
  // incident, and the memory had a state before it.
  WITH m, as_of, versions, [v IN versions WHERE any(w IN windows WHERE v.origin = w.store AND v.changed_at >= w.first
    AND v.changed_at <= w.last AND CASE w.operation WHEN 'create'
      THEN any(made IN versions WHERE made.operation = 'create' AND made.origin = w.store AND made.changed_at >= w.first
          AND (made.changed_at <= v.changed_at OR v.operation = 'delete' AND made.changed_at <= w.last))
        AND any(old IN versions WHERE old.changed_at < w.first)
      ELSE w.operation = v.operation END)] AS bad
  WITH m, versions, bad, as_of,
    any(v IN bad WHERE v.sync_version = m.sync_version AND v.content_hash = m.content_hash
      AND (v.operation = 'delete') = (m.deleted_at IS NOT NULL)) AS hit
  WITH m, versions, hit, head([v IN versions WHERE
    CASE WHEN as_of IS NULL THEN NOT v IN bad ELSE v.changed_at <= as_of END]) AS h
  // Without any history there is nothing to say against what stands there now.
  WITH m, hit, CASE WHEN h IS NULL AND size(versions) = 0 THEN m ELSE h END AS h
  RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, hit, h.sync_version, h.content_hash,
    CASE WHEN h = m THEN m.deleted_at IS NOT NULL ELSE h.operation = 'delete' END,
    h.memory_type, h.importance, h.session_id]) AS found
}
RETURN settled + found AS page

// whole_states //
// States of memories in the field order of domain.memory.RemoteMemory, each as a live one. $rows: [id, version, hash]: the
// current state if it is that, else the one of the history.
UNWIND $rows AS r
MATCH (m:Memory {id: r[0]})
CALL (r, m) {
  WITH r, m WHERE coalesce(m.sync_version = r[1] AND m.content_hash = r[2], false)
  RETURN m AS s
  UNION ALL
  WITH r, m WHERE NOT coalesce(m.sync_version = r[1] AND m.content_hash = r[2], false)
  MATCH (m)-[:HAS_VERSION]->(h:MemoryVersion {sync_version: r[1], content_hash: r[2]})
  RETURN h AS s ORDER BY h.operation = 'delete', h.changed_at DESC LIMIT 1
}
WITH m, s ORDER BY m.id
RETURN collect([m.id, s.sync_version, s.content_hash, null, s.content, s.memory_type, s.importance, s.source_project,
  s.session_id, s.tags, toString(s.created_at), toString(s.updated_at), s.extra]) AS page

// states_before //
// In the same field order, of $memory_ids that have changed since $moment, ISO 8601 text: the newest state from before it, where
// they were there then.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id}) WHERE coalesce(m.changed_at >= datetime($moment), true)
CALL (m) {
  MATCH (m)-[:HAS_VERSION]->(h:MemoryVersion)
  WHERE h.changed_at < datetime($moment) AND h.sync_version <= m.sync_version
  RETURN h ORDER BY h.sync_version DESC, h.changed_at DESC LIMIT 1
}
WITH m, h WHERE h.operation <> 'delete' ORDER BY m.id
RETURN collect([m.id, h.sync_version, h.content_hash, null, h.content, h.memory_type, h.importance, h.source_project,
  h.session_id, h.tags, toString(h.created_at), toString(h.updated_at), h.extra]) AS page

// deleted_before //
// How many memories were deleted before $moment, ISO 8601 text, and are. $stores: those that have written them last, none mean all.
MATCH (m:Memory) WHERE m.deleted_at < datetime($moment) AND (size($stores) = 0 OR m.origin IN $stores)
RETURN count(m) AS deleted

// history_begins //
// When the oldest version was captured, ISO 8601 text. No parameters.
MATCH (h:MemoryVersion) RETURN toString(min(h.changed_at)) AS begins

// known_stores //
// [id, where it is, when it pushed first, when last, from before when its history was purged] of the local stores that have
// written here, times as ISO 8601 text. No parameters.
MATCH (s:Store) WHERE s.id IS :: STRING NOT NULL
RETURN collect([s.id, s.place, toString(s.begun_at), toString(s.last_push_at), toString(s.purged_before)]) AS stores

// unknown_names //
// [projects, sessions, memories] of $projects, $sessions and $memory_ids that there have never been any of.
RETURN [
  [id IN $projects WHERE NOT EXISTS { MATCH (:Project {id: id}) }],
  [id IN $sessions WHERE NOT EXISTS { MATCH (:Session {id: id}) }],
  [id IN $memory_ids WHERE NOT EXISTS { MATCH (:Memory {id: id}) }]
] AS unknown

// project_names //
// All of them. No parameters.
MATCH (p:Project) WHERE p.id IS :: STRING NOT NULL
WITH p.id AS id ORDER BY id
RETURN collect(id) AS names
