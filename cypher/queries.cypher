// schema_present //
// Names of the constraints and indexes that are there, and settings of those that have some. No parameters.
SHOW INDEXES YIELD name, state, options
RETURN collect([name, state, options.indexConfig['vector.dimensions'], options.indexConfig['fulltext.analyzer']]) AS indexes

// await_indexes //
// Waits for new indexes. $seconds: at most so long.
CALL db.awaitIndexes($seconds)

// components //
// The server's version. No parameters.
CALL dbms.components() YIELD name, versions WHERE name = 'Neo4j Kernel' RETURN versions[0] AS version

// write_store //
// Notes that a local store writes here. $id, $epoch: its identity.
MERGE (s:Store {id: $id}) SET s.epoch = $epoch, s.last_push_at = datetime()

// write_memories //
// Applies the changes of a batch, each guarded by version, and returns [id, outcome, version] of each.
// Never removes a node: what is overwritten stands as a MemoryVersion, what is deleted stays with `deleted_at`.
// $store: id of the local store. $projects: ids. $sessions: {id, project}. $rows: maps as adapters/neo4j/rows.py makes
// them, sorted by id. Times are ISO 8601 text, since temporal values are slow on the wire.
CALL () {
  UNWIND $projects AS id
  MERGE (:Project {id: id})
}
CALL () {
  UNWIND $sessions AS row
  MERGE (s:Session {id: row.id})
  SET s.project_id = coalesce(s.project_id, row.project)
  WITH s, row WHERE s.project_id = row.project
  MATCH (p:Project {id: row.project})
  MERGE (s)-[:PART_OF]->(p)
}
UNWIND $rows AS r
MERGE (m:Memory {id: r.id})
// Takes the node's lock before it is read: two stores may write the same memory at once.
SET m:Memory
WITH r, m,
  m.deleted_at IS NOT NULL AS gone,
  m.origin <> $store AND m.sync_version > r.base AS foreign
WITH r, m, gone,
  CASE
    WHEN m.sync_version IS NULL THEN 'created'
    WHEN m.sync_version > r.version THEN 'stale'
    WHEN m.sync_version < r.version THEN
      CASE
        WHEN gone AND NOT r.deleted THEN 'resurrected'
        WHEN foreign AND r.deleted AND NOT gone THEN 'conflict_lost'
        WHEN foreign AND NOT gone THEN 'conflict_won'
        ELSE 'updated'
      END
    WHEN m.content_hash = r.state.content_hash AND gone = r.deleted THEN 'unchanged'
    WHEN gone AND NOT r.deleted THEN 'stale'
    WHEN r.deleted AND NOT gone THEN 'conflict_lost'
    WHEN coalesce(datetime(r.updated_at), datetime('0001-01-01')) > coalesce(m.updated_at, datetime('0001-01-01')) THEN 'conflict_won'
    WHEN coalesce(datetime(r.updated_at), datetime('0001-01-01')) < coalesce(m.updated_at, datetime('0001-01-01')) THEN 'conflict_lost'
    WHEN r.state.content_hash > m.content_hash THEN 'conflict_won'
    ELSE 'conflict_lost'
  END AS outcome
WITH r, m, outcome,
  outcome IN ['created', 'updated', 'resurrected', 'conflict_won'] AS applied,
  gone OR r.deleted OR m.text_hash IS NULL OR r.text_hash IS NULL OR m.text_hash <> r.text_hash AS other_text,
  m.session_id IS NULL OR r.state.session_id IS NULL OR m.session_id <> r.state.session_id AS other_session,
  m.source_project IS NULL OR r.state.source_project IS NULL OR m.source_project <> r.state.source_project AS other_project
FOREACH (_ IN CASE WHEN applied THEN [1] ELSE [] END |
  SET m += r.state
  SET m.text_hash = r.text_hash, m.created_at = datetime(r.created_at), m.updated_at = datetime(r.updated_at),
      m.deleted_at = CASE WHEN r.deleted THEN datetime(r.changed_at) END
)
FOREACH (_ IN CASE WHEN applied AND other_text THEN [1] ELSE [] END |
  REMOVE m:Unembedded, m.embedding, m.embedding_model, m.embedding_hash, m.embedding_error
)
FOREACH (_ IN CASE WHEN applied AND other_text AND NOT r.deleted AND r.text_hash IS NOT NULL THEN [1] ELSE [] END |
  SET m:Unembedded
)
FOREACH (v IN r.older + [r] |
  MERGE (h:MemoryVersion {key: v.key})
  ON CREATE SET h += v.state, h.operation = v.operation, h.changed_at = datetime(v.changed_at),
    h.created_at = datetime(v.created_at), h.updated_at = datetime(v.updated_at)
  MERGE (m)-[:HAS_VERSION]->(h)
)
WITH r, m, outcome, applied AND other_session AS moved, applied AND other_project AS retagged
CALL (r, m, moved) {
  WITH r, m WHERE moved
  MATCH (m)-[link:BELONGS_TO]->(s:Session) WHERE r.state.session_id IS NULL OR s.id <> r.state.session_id
  DELETE link
}
CALL (r, m, moved) {
  WITH r, m WHERE moved
  MATCH (s:Session {id: r.state.session_id})
  MERGE (m)-[:BELONGS_TO]->(s)
}
CALL (r, m, retagged) {
  WITH r, m WHERE retagged
  MATCH (m)-[link:TAGGED_WITH]->(p:Project) WHERE r.state.source_project IS NULL OR p.id <> r.state.source_project
  DELETE link
}
CALL (r, m, retagged) {
  WITH r, m WHERE retagged
  MATCH (p:Project {id: r.state.source_project})
  MERGE (m)-[:TAGGED_WITH]->(p)
}
RETURN collect([r.id, outcome, m.sync_version]) AS outcomes
