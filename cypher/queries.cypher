// schema_present //
// Names of the constraints and indexes that are there, and settings of those that have some. No parameters.
SHOW INDEXES YIELD name, state, options
RETURN collect([name, state, options.indexConfig['vector.dimensions'], options.indexConfig['fulltext.analyzer']]) AS indexes

// await_indexes //
// Waits for new indexes. $at_most: seconds.
CALL db.awaitIndexes($at_most)

// components //
// The server's version. No parameters.
CALL dbms.components() YIELD name, versions WHERE name = 'Neo4j Kernel' RETURN versions[0] AS version

// write_store //
// Moves a local store on to the lineage $to, if what its node remembers is one of $accepted ('' for nothing) or $to itself,
// which is the case from the second write of a push on. Returns [whether it did, what the node held: see `lineage`].
// $id, $epoch: the store's identity. $generation: the number of this push. $last_entry: id of its last queue entry.
MERGE (s:Store {id: $id})
// Takes the node's lock before it is read: a process that was paused may be writing too.
SET s:Store
// What is compared is what is told of: a lineage that somebody made another type by hand has one text, or none.
WITH s, coalesce(toStringOrNull(s.lineage), '') AS lineage
WITH s, [s.epoch, s.generation, lineage, s.past_epochs, s.last_entry] AS held,
  lineage IN $accepted + [$to] AS moves,
  CASE WHEN s.epoch IS :: STRING NOT NULL AND s.epoch <> $epoch THEN [s.epoch] ELSE [] END AS given_up
FOREACH (_ IN CASE WHEN moves THEN [1] ELSE [] END |
  SET s.past_epochs = coalesce(s.past_epochs, []) + given_up, s.epoch = $epoch, s.generation = $generation,
      s.lineage = $to, s.last_entry = $last_entry,
      s.begun_at = CASE WHEN s.last_push_at IS NULL THEN datetime() ELSE s.begun_at END, s.last_push_at = datetime()
)
RETURN [moves, held] AS noted

// merge_stores //
// Of several nodes of one local store, made before there was a constraint, the one that remembers most pushes stays, and
// the others keep what they hold under another label. No parameters.
MATCH (s:Store)
WITH s ORDER BY coalesce(toIntegerOrNull(s.generation), 0) DESC, s.definition_at DESC
WITH s.id AS id, collect(s) AS nodes
WHERE size(nodes) > 1
WITH nodes[0] AS kept, nodes[1..] AS others
UNWIND others AS other
SET kept.definition = coalesce(kept.definition, other.definition),
    kept.definition_at = coalesce(kept.definition_at, other.definition_at), other:FormerStore
REMOVE other:Store
RETURN count(other) AS merged

// lineage //
// Of the local store $id: [epoch, generation, lineage, past epochs, last queue entry].
MATCH (s:Store {id: $id})
RETURN [s.epoch, s.generation, coalesce(toStringOrNull(s.lineage), ''), s.past_epochs, s.last_entry] AS held

// write_memories //
// Applies the changes of a batch, each guarded by version, and returns the fields of engine.ports.push.RowOutcome of each.
// Never removes a node: what is overwritten stands as a MemoryVersion, what is deleted stays with `deleted_at`.
// $store: id of the local store. $projects: ids. $sessions: {id, project}. $rows: maps as adapters/neo4j/rows.py makes
// them, sorted by id. Times are ISO 8601 text, since temporal values are slow on the wire.
// Every look-up is by a unique key, so statistics cannot make a better plan, and planning this anew takes a second.
CYPHER replan=skip
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
OPTIONAL MATCH (known:Memory {id: r.id})
OPTIONAL MATCH (kept:MemoryVersion {key: r.key})
WITH r, known IS NULL AND kept IS NULL AND size(r.older) = 0 AS plain
WITH collect(CASE WHEN plain THEN r END) AS fresh, collect(CASE WHEN NOT plain THEN r END) AS others
CALL (fresh) {
  // Memories that are new: by far the most common, so they have a way of their own, which saves a third of the time.
  // If two stores create one at once, the constraint stops the later one, whose batch is sent again.
  UNWIND fresh AS r
  WITH r, datetime(r.created_at) AS created_at, datetime(r.updated_at) AS updated_at, datetime(r.changed_at) AS changed_at
  OPTIONAL MATCH (s:Session {id: r.state.session_id})
  OPTIONAL MATCH (p:Project {id: r.state.source_project})
  CREATE (m:Memory {
    id: r.id, text_hash: r.text_hash, deleted_at: CASE WHEN r.deleted THEN changed_at END,
    content: r.state.content, memory_type: r.state.memory_type, importance: r.state.importance,
    source_project: r.state.source_project, session_id: r.state.session_id, tags: r.state.tags, extra: r.state.extra,
    content_hash: r.state.content_hash, sync_version: r.state.sync_version, origin: r.state.origin,
    created_at: created_at, updated_at: updated_at, changed_at: changed_at
  })-[:HAS_VERSION]->(:MemoryVersion {
    key: r.key, operation: r.operation, changed_at: changed_at,
    content: r.state.content, memory_type: r.state.memory_type, importance: r.state.importance,
    source_project: r.state.source_project, session_id: r.state.session_id, tags: r.state.tags, extra: r.state.extra,
    content_hash: r.state.content_hash, sync_version: r.state.sync_version, origin: r.state.origin,
    created_at: created_at, updated_at: updated_at
  })
  FOREACH (_ IN CASE WHEN r.deleted OR r.text_hash IS NULL THEN [] ELSE [1] END | SET m:Unembedded)
  FOREACH (_ IN CASE WHEN s IS NULL THEN [] ELSE [1] END | CREATE (m)-[:BELONGS_TO]->(s))
  FOREACH (_ IN CASE WHEN p IS NULL THEN [] ELSE [1] END | CREATE (m)-[:TAGGED_WITH]->(p))
  RETURN collect([r.id, 'created', r.version, [], false]) AS created
}
CALL (others) {
  UNWIND others AS r
  MERGE (m:Memory {id: r.id})
  // Takes the node's lock before it is read: two stores may write the same memory at once.
  SET m:Memory
  // A version that somebody wrote by hand, and that is no number, counts as none.
  WITH r, m,
    CASE WHEN m.sync_version IS :: INTEGER NOT NULL THEN m.sync_version ELSE 0 END AS held
  WITH r, m, held,
    m.deleted_at IS NOT NULL AS gone,
    m.origin <> $store AND held > r.base AS foreign
  WITH r, m, held, gone,
    CASE
      WHEN m.sync_version IS NULL AND m.content_hash IS NULL THEN 'created'
      WHEN held > r.version THEN 'stale'
      WHEN held < r.version THEN
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
    END AS judged
  // One store alone has no conflict: its row was inserted again, and has come to the same number.
  WITH r, m, held, gone,
    CASE
      WHEN m.origin = $store AND judged = 'conflict_won' THEN 'updated'
      WHEN m.origin = $store AND judged = 'conflict_lost' THEN CASE WHEN gone THEN 'unchanged' ELSE 'stale' END
      ELSE judged
    END AS outcome
  WITH r, m, outcome,
    CASE outcome WHEN 'conflict_won' THEN {replaced: left(coalesce(toStringOrNull(m.content), ''), 100), replaced_version: held} END
      AS replaced,
    outcome IN ['created', 'updated', 'resurrected', 'conflict_won'] AS applied,
    gone OR r.deleted OR m.text_hash IS NULL OR r.text_hash IS NULL OR m.text_hash <> r.text_hash AS other_text,
    m.session_id IS NULL OR r.state.session_id IS NULL OR m.session_id <> r.state.session_id AS other_session,
    m.source_project IS NULL OR r.state.source_project IS NULL OR m.source_project <> r.state.source_project AS other_project
  FOREACH (_ IN CASE WHEN applied THEN [1] ELSE [] END |
    SET m += r.state, m += {
      text_hash: r.text_hash, created_at: datetime(r.created_at), updated_at: datetime(r.updated_at),
      changed_at: datetime(r.changed_at), deleted_at: CASE WHEN r.deleted THEN datetime(r.changed_at) END
    }
  )
  FOREACH (_ IN CASE WHEN applied AND other_text AND outcome <> 'created' THEN [1] ELSE [] END |
    REMOVE m:Unembedded, m.embedding, m.embedding_model, m.embedding_hash, m.embedding_error
  )
  FOREACH (_ IN CASE WHEN applied AND other_text AND NOT r.deleted AND r.text_hash IS NOT NULL THEN [1] ELSE [] END |
    SET m:Unembedded
  )
  FOREACH (v IN r.older + [r] |
    MERGE (h:MemoryVersion {key: v.key})
    ON CREATE SET h += v.state, h += {
      operation: v.operation, changed_at: datetime(v.changed_at), created_at: datetime(v.created_at),
      updated_at: datetime(v.updated_at)
    }
    MERGE (m)-[:HAS_VERSION]->(h)
  )
  // What was replaced is kept with the version that won, since the answer to this batch may be lost on its way.
  FOREACH (_ IN CASE WHEN replaced IS NULL THEN [] ELSE [1] END |
    MERGE (h:MemoryVersion {key: r.key})
    SET h += replaced
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
  CALL (r) {
    UNWIND r.older + [r] AS v
    MATCH (h:MemoryVersion {key: v.key}) WHERE h.replaced IS NOT NULL AND h.origin = $store
    WITH h ORDER BY h.sync_version
    RETURN collect([h.replaced, h.replaced_version, h.sync_version]) AS won
  }
  RETURN collect([r.id, outcome, CASE WHEN m.sync_version IS :: INTEGER NOT NULL THEN m.sync_version ELSE 0 END, won,
    // A delete that was captured after what stands here, by one store: its count started again, and is no measure.
    r.deleted AND outcome IN ['stale', 'conflict_lost'] AND m.origin = $store AND m.deleted_at IS NULL AND EXISTS {
      (m)-[:HAS_VERSION]->(h:MemoryVersion {sync_version: m.sync_version, content_hash: m.content_hash})
      WHERE h.operation <> 'delete' AND h.changed_at < datetime(r.changed_at)
    }]) AS written
}
RETURN created + written AS outcomes

// write_projects //
// $rows: rows of the local table `projects`, times as ISO 8601 text. An older state never replaces a newer one.
UNWIND $rows AS r
MERGE (p:Project {id: r.id})
SET p:Project
WITH r, p, datetime(coalesce(r.changed_at, r.created_at)) AS changed_at
WHERE p.changed_at IS NULL OR changed_at IS NULL OR changed_at >= p.changed_at
SET p.name = r.name, p.description = r.description, p.created_at = datetime(r.created_at),
    p.changed_at = coalesce(changed_at, p.changed_at)

// write_sessions //
// $rows: rows of the local table `sessions`, times as ISO 8601 text. An older state never replaces a newer one, and an
// ended session stays ended. A new session follows the one that its project started last before it.
UNWIND $rows AS r
MERGE (s:Session {id: r.id})
SET s:Session
WITH r, s, s.started_at IS NULL AS fresh, datetime(r.last_activity_at) AS active_at, datetime(r.ended_at) AS ended_at
SET s.ended_at = CASE WHEN s.ended_at IS NULL OR ended_at > s.ended_at THEN ended_at ELSE s.ended_at END
WITH r, s, fresh, active_at WHERE fresh OR s.last_activity_at IS NULL OR active_at >= s.last_activity_at
SET s.started_at = coalesce(s.started_at, datetime(r.started_at)), s.last_activity_at = active_at,
    s.summary = coalesce(r.summary, s.summary), s.project_id = coalesce(r.project_id, s.project_id)
WITH s, fresh WHERE s.project_id IS NOT NULL
MERGE (p:Project {id: s.project_id})
MERGE (s)-[:PART_OF]->(p)
WITH s, fresh, p
CALL (s, p) {
  MATCH (s)-[link:PART_OF]->(other:Project) WHERE other.id <> p.id
  DELETE link
}
WITH s, fresh, p WHERE fresh
CALL (s, p) {
  MATCH (p)<-[:PART_OF]-(previous:Session) WHERE previous.started_at < s.started_at
  WITH s, previous ORDER BY previous.started_at DESC, previous.id LIMIT 1
  MERGE (previous)-[:FOLLOWED_BY]->(s)
}

// write_references //
// $rows: rows of the local table `memory_references`, with `deleted` where one was removed. A reference is noted when
// both memories are there; a removed one stays, marked. An older state never replaces a newer one.
UNWIND $rows AS r
MATCH (a:Memory {id: r.source_id})
MATCH (b:Memory {id: r.target_id})
MERGE (a)-[link:REFERENCES {context: coalesce(r.context, '')}]->(b)
WITH r, link, datetime(coalesce(r.changed_at, r.created_at)) AS changed_at, coalesce(r.deleted, false) AS deleted
WHERE link.changed_at IS NULL OR changed_at > link.changed_at
   OR changed_at = link.changed_at AND (deleted OR NOT link.deleted)
SET link.created_at = datetime(r.created_at), link.changed_at = changed_at, link.deleted = deleted

// digests //
// A page in the field order of domain.memory.Digest. $after: last id of the page before. $limit: rows. $projects, $sessions,
// $memory_ids: scope, empty lists mean all.
MATCH (m:Memory)
WHERE m.id > $after
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($sessions) = 0 OR m.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR m.id IN $memory_ids)
WITH m ORDER BY m.id LIMIT $limit
RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, m.memory_type, m.importance, m.session_id])
  AS page

// memories //
// A page of whole memories in the field order of domain.memory.RemoteMemory. Parameters as of `digests`.
MATCH (m:Memory)
WHERE m.id > $after
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($sessions) = 0 OR m.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR m.id IN $memory_ids)
WITH m ORDER BY m.id LIMIT $limit
RETURN collect([m.id, m.sync_version, m.content_hash, toString(m.deleted_at), m.content, m.memory_type, m.importance,
  m.source_project, m.session_id, m.tags, toString(m.created_at), toString(m.updated_at), m.extra]) AS page

// memories_by_id //
// Whole memories in the field order of domain.memory.RemoteMemory, those that are there. $memory_ids: which.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
WITH m ORDER BY m.id
RETURN collect([m.id, m.sync_version, m.content_hash, toString(m.deleted_at), m.content, m.memory_type, m.importance,
  m.source_project, m.session_id, m.tags, toString(m.created_at), toString(m.updated_at), m.extra]) AS page

// unlinked //
// $rows: references; those of which a memory is not there.
UNWIND $rows AS r
OPTIONAL MATCH (a:Memory {id: r.source_id})
OPTIONAL MATCH (b:Memory {id: r.target_id})
WITH r WHERE a IS NULL OR b IS NULL
RETURN collect(r) AS rows

// sessions //
// Sessions that were written as rows, not those that only a memory names. $projects, $sessions, $memory_ids: scope, empty
// lists mean all: sessions in it, and those of memories in it.
MATCH (s:Session)
WHERE s.started_at IS NOT NULL AND (
  size($memory_ids) = 0 AND (size($projects) = 0 OR s.project_id IN $projects)
    AND (size($sessions) = 0 OR s.id IN $sessions)
  OR EXISTS { (m:Memory)-[:BELONGS_TO]->(s) WHERE (size($projects) = 0 OR m.source_project IN $projects)
    AND (size($sessions) = 0 OR m.session_id IN $sessions) AND (size($memory_ids) = 0 OR m.id IN $memory_ids) })
WITH s ORDER BY s.id
RETURN collect({id: s.id, project_id: s.project_id, started_at: toString(s.started_at),
  last_activity_at: toString(s.last_activity_at), ended_at: toString(s.ended_at), summary: s.summary}) AS rows

// projects //
// Projects that were written as rows, not those that only a memory names. Parameters as of `sessions`.
MATCH (p:Project)
WHERE (p.name IS NOT NULL OR p.created_at IS NOT NULL) AND (
  size($memory_ids) = 0 AND size($sessions) = 0 AND (size($projects) = 0 OR p.id IN $projects)
  OR EXISTS { (m:Memory)-[:TAGGED_WITH]->(p) WHERE (size($projects) = 0 OR m.source_project IN $projects)
    AND (size($sessions) = 0 OR m.session_id IN $sessions) AND (size($memory_ids) = 0 OR m.id IN $memory_ids) })
WITH p ORDER BY p.id
RETURN collect({id: p.id, name: p.name, description: p.description, created_at: toString(p.created_at)}) AS rows

// counts //
// [memories with tombstones, tombstones, versions]. No parameters.
RETURN [
  COUNT { MATCH (:Memory) },
  COUNT { MATCH (m:Memory) WHERE m.deleted_at IS NOT NULL },
  COUNT { MATCH (:MemoryVersion) }
] AS counts

// holdings //
// In the field order of engine.ports.recover.Holdings. $store: id of a local store. Where no other store has written, everything
// is its own and nothing has to be scanned.
WITH COUNT { MATCH (s:Store) WHERE s.id <> $store } = 0 AS alone
CALL (alone) {
  WITH alone WHERE alone
  WITH COUNT { MATCH (:Memory) } AS memories, COUNT { MATCH (m:Memory) WHERE m.deleted_at IS NOT NULL } AS tombstones
  RETURN memories - tombstones AS live, tombstones
  UNION ALL
  WITH alone WHERE NOT alone
  MATCH (m:Memory {origin: $store})
  RETURN count(m) - count(m.deleted_at) AS live, count(m.deleted_at) AS tombstones
}
RETURN [EXISTS { MATCH (:Store {id: $store}) }, sum(live), sum(tombstones)] AS holdings

// standing //
// A keyset page of all memories: [id, version, hash, deleted, origin]. $after: last id of the page before. $limit: rows.
MATCH (m:Memory) WHERE m.id > $after
WITH m ORDER BY m.id LIMIT $limit
RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, m.origin]) AS page

// standing_of //
// The same of the memories $memory_ids that are there.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
RETURN collect([m.id, m.sync_version, m.content_hash, m.deleted_at IS NOT NULL, m.origin]) AS page

// tallies //
// [project, whether $store wrote them last, live memories, sum of their versions]. $without: ids that are left out.
MATCH (m:Memory) WHERE m.deleted_at IS NULL
WITH m.source_project AS project, coalesce(m.origin = $store, false) AS own, count(*) AS memories,
     sum(m.sync_version) AS versions
WITH collect([project, own, memories, versions]) AS all
CALL () {
  UNWIND $without AS id
  MATCH (m:Memory {id: id}) WHERE m.deleted_at IS NULL
  RETURN collect([m.source_project, coalesce(m.origin = $store, false), -1, -m.sync_version]) AS less
}
RETURN all + less AS tallies

// duplicated //
// Ids that several nodes bear, at most $limit.
MATCH (m:Memory)
WITH m.id AS id, count(*) AS nodes WHERE nodes > 1
WITH id ORDER BY id LIMIT $limit
RETURN collect(id) AS ids

// deep_page //
// A keyset page of [whole memory as of `memories`, origin, whether its current version is in its history].
// $after: last id of the page before. $limit: rows.
MATCH (m:Memory) WHERE m.id > $after
WITH m ORDER BY m.id LIMIT $limit
RETURN collect([[m.id, m.sync_version, m.content_hash, toString(m.deleted_at), m.content, m.memory_type, m.importance,
  m.source_project, m.session_id, m.tags, toString(m.created_at), toString(m.updated_at), m.extra], m.origin, EXISTS {
  (m)-[:HAS_VERSION]->(h:MemoryVersion) WHERE h.sync_version = m.sync_version AND h.content_hash = m.content_hash}]) AS page

// deep_of //
// The same of the memories $memory_ids that are there.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
RETURN collect([[m.id, m.sync_version, m.content_hash, toString(m.deleted_at), m.content, m.memory_type, m.importance,
  m.source_project, m.session_id, m.tags, toString(m.created_at), toString(m.updated_at), m.extra], m.origin, EXISTS {
  (m)-[:HAS_VERSION]->(h:MemoryVersion) WHERE h.sync_version = m.sync_version AND h.content_hash = m.content_hash}]) AS page

// keep_states //
// Adds states to the histories of memories, which stay as they are: the ids of those that are there. $rows: maps as
// adapters/neo4j/rows.py makes them.
UNWIND $rows AS r
MATCH (m:Memory {id: r.id})
UNWIND r.older + [r] AS v
MERGE (h:MemoryVersion {key: v.key})
ON CREATE SET h += v.state, h += {
  operation: v.operation, changed_at: datetime(v.changed_at), created_at: datetime(v.created_at),
  updated_at: datetime(v.updated_at)
}
MERGE (m)-[:HAS_VERSION]->(h)
RETURN collect(DISTINCT r.id) AS kept

// keep_found //
// Writes what a memory holds into its history, under $rows[].key, if it is not there: how many stood at the version and
// the hash of their row. `corrupt`: whether the content is another than its hash says.
UNWIND $rows AS r
MATCH (m:Memory {id: r.id})
// Takes the node's lock before it is read: a push may be changing it.
SET m:Memory
WITH r, m WHERE m.sync_version = r.version AND m.content_hash = r.content_hash
MERGE (h:MemoryVersion {key: r.key})
ON CREATE SET h += {
  operation: CASE WHEN m.deleted_at IS NULL THEN 'update' ELSE 'delete' END,
  changed_at: coalesce(m.deleted_at, datetime()), created_at: m.created_at, updated_at: m.updated_at, content: m.content,
  memory_type: m.memory_type, importance: m.importance, source_project: m.source_project, session_id: m.session_id,
  tags: m.tags, extra: m.extra, content_hash: m.content_hash, sync_version: m.sync_version, origin: m.origin,
  corrupt: CASE WHEN r.corrupt THEN true END
}
MERGE (m)-[:HAS_VERSION]->(h)
RETURN count(*) AS stood

// merge_duplicates //
// Of the nodes that bear one of $memory_ids, the highest version stays the memory; the others, with their content, become
// versions of it, and their histories and references are its own. How many memories had several.
UNWIND $memory_ids AS id
MATCH (m:Memory {id: id})
WITH id, m ORDER BY m.sync_version DESC, m.deleted_at IS NULL DESC, m.updated_at DESC, elementId(m)
WITH id, collect(m) AS nodes WHERE size(nodes) > 1
WITH id, head(nodes) AS kept, tail(nodes) AS others
CALL (kept, others) {
  UNWIND others AS other
  CALL (kept, other) {
    MATCH (other)-[link:HAS_VERSION]->(h:MemoryVersion)
    MERGE (kept)-[:HAS_VERSION]->(h)
    DELETE link
  }
  CALL (kept, other) {
    MATCH (other)-[link:REFERENCES]->(target:Memory) WHERE target <> kept
    MERGE (kept)-[same:REFERENCES {context: coalesce(link.context, '')}]->(target)
    ON CREATE SET same += properties(link)
    DELETE link
  }
  CALL (kept, other) {
    MATCH (source:Memory)-[link:REFERENCES]->(other) WHERE source <> kept
    MERGE (source)-[same:REFERENCES {context: coalesce(link.context, '')}]->(kept)
    ON CREATE SET same += properties(link)
    DELETE link
  }
  CALL (other) {
    MATCH (other)-[link:BELONGS_TO|TAGGED_WITH]->()
    DELETE link
  }
  SET other:MemoryVersion, other.changed_at = coalesce(other.deleted_at, other.updated_at, datetime()),
    other.operation = CASE WHEN other.deleted_at IS NULL THEN 'update' ELSE 'delete' END,
    other.key = other.id + ':' + toString(coalesce(other.sync_version, 0)) + ':' + left(coalesce(other.content_hash, ''), 16)
      + ':' + elementId(other)
  REMOVE other:Memory, other:Unembedded, other.id, other.embedding, other.embedding_model, other.embedding_hash,
    other.embedding_error, other.text_hash, other.deleted_at
  MERGE (kept)-[:HAS_VERSION]->(other)
}
RETURN count(DISTINCT id) AS merged

// texts_without_vector //
// [id, content, text_hash] of memories that wait for a vector. $limit: at most so many.
MATCH (m:Memory:Unembedded)
WHERE m.deleted_at IS NULL AND m.content IS :: STRING NOT NULL
WITH m LIMIT $limit
RETURN collect([m.id, m.content, m.text_hash]) AS texts

// mend_text_hashes //
// A content that somebody changed by hand gets its hash, without which no vector of it could be stored. $rows: {id,
// content, text_hash}, sorted by id.
UNWIND $rows AS r
MATCH (m:Memory {id: r.id})
SET m:Memory
WITH r, m WHERE m.content = r.content
SET m.text_hash = r.text_hash

// count_without_vector //
// How many memories wait for a vector. No parameters.
RETURN COUNT { MATCH (:Unembedded) } AS waiting

// store_vectors //
// How many vectors were stored. $rows: {id, text_hash, values}, sorted by id. $model: what made them.
UNWIND $rows AS r
MATCH (m:Memory {id: r.id})
// Takes the node's lock before it is read: a push may be changing the text.
SET m:Memory
WITH r, m WHERE m.text_hash = r.text_hash AND m.deleted_at IS NULL
SET m.embedding_model = $model, m.embedding_hash = r.text_hash
REMOVE m:Unembedded, m.embedding_error
WITH r, m
CALL db.create.setNodeVectorProperty(m, 'embedding', r.values)
RETURN count(*) AS stored

// refuse_text //
// Takes a memory off the waiting list for as long as its text stays. $id, $text_hash: which. $reason: one line.
MATCH (m:Memory {id: $id})
SET m:Memory
WITH m WHERE m.text_hash = $text_hash AND m.deleted_at IS NULL
SET m.embedding_error = $reason
REMOVE m:Unembedded

// search_words //
// [how many the index gave, rows in the field order of engine.ports.query.FoundMemory], best first. $query: Lucene syntax.
// $depth: how many to ask the index for. $limit: rows. $characters: contents are cut there. The rest: filters, empty
// lists and null mean anything.
CALL db.index.fulltext.queryNodes('memory_content', $query, {limit: $depth}) YIELD node AS m, score
WITH collect([m, score]) AS hits
CALL (hits) {
  UNWIND hits AS hit
  WITH hit[0] AS m, hit[1] AS score
  WHERE m.deleted_at IS NULL
    AND (size($projects) = 0 OR m.source_project IN $projects)
    AND (size($sessions) = 0 OR m.session_id IN $sessions)
    AND (size($memory_types) = 0 OR m.memory_type IN $memory_types)
    AND (size($tags) = 0 OR any(tag IN m.tags WHERE tag IN $tags))
    AND ($created_after IS NULL OR m.created_at >= datetime($created_after))
    AND ($created_before IS NULL OR m.created_at < datetime($created_before))
  WITH m, score ORDER BY score DESC, m.id LIMIT $limit
  OPTIONAL MATCH (m)-[:BELONGS_TO]->(s:Session)
  RETURN collect([m.id, score, left(coalesce(m.content, ''), $characters), m.memory_type, m.importance,
    m.source_project, m.session_id, coalesce(m.tags, []), toString(m.created_at), toString(s.started_at),
    s.summary]) AS page
}
RETURN [size(hits), page] AS found

// search_vector //
// [how many the index gave, rows in the field order of engine.ports.query.FoundMemory], best first. $vector: what to be near
// to. The other parameters are those of `search_words`.
CALL db.index.vector.queryNodes('memory_embedding', $depth, $vector) YIELD node AS m, score
WITH collect([m, score]) AS hits
CALL (hits) {
  UNWIND hits AS hit
  WITH hit[0] AS m, hit[1] AS score
  WHERE m.deleted_at IS NULL
    AND (size($projects) = 0 OR m.source_project IN $projects)
    AND (size($sessions) = 0 OR m.session_id IN $sessions)
    AND (size($memory_types) = 0 OR m.memory_type IN $memory_types)
    AND (size($tags) = 0 OR any(tag IN m.tags WHERE tag IN $tags))
    AND ($created_after IS NULL OR m.created_at >= datetime($created_after))
    AND ($created_before IS NULL OR m.created_at < datetime($created_before))
  WITH m, score ORDER BY score DESC, m.id LIMIT $limit
  OPTIONAL MATCH (m)-[:BELONGS_TO]->(s:Session)
  RETURN collect([m.id, score, left(coalesce(m.content, ''), $characters), m.memory_type, m.importance,
    m.source_project, m.session_id, coalesce(m.tags, []), toString(m.created_at), toString(s.started_at),
    s.summary]) AS page
}
RETURN [size(hits), page] AS found

// count_candidates //
// How many memories the filters leave, counted up to $limit. The other parameters are filters as of `search_words`.
CALL () {
  UNWIND $sessions AS id
  MATCH (:Session {id: id})<-[:BELONGS_TO]-(m:Memory)
  RETURN m
  UNION ALL
  UNWIND CASE WHEN size($sessions) = 0 THEN $projects ELSE [] END AS id
  MATCH (:Project {id: id})<-[:TAGGED_WITH]-(m:Memory)
  RETURN m
  UNION ALL
  UNWIND CASE WHEN size($sessions) + size($projects) = 0 THEN [true] ELSE [] END AS everywhere
  MATCH (m:Memory)
  RETURN m
}
WITH m
WHERE m.deleted_at IS NULL
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($memory_types) = 0 OR m.memory_type IN $memory_types)
  AND (size($tags) = 0 OR any(tag IN m.tags WHERE tag IN $tags))
  AND ($created_after IS NULL OR m.created_at >= datetime($created_after))
  AND ($created_before IS NULL OR m.created_at < datetime($created_before))
WITH m LIMIT $limit
RETURN count(m) AS candidates

// scan_vectors //
// Rows in the field order of engine.ports.query.FoundMemory, nearest first: every memory that the filters leave is compared.
// $vector: what to be near to. The other parameters are those of `search_words`.
CALL () {
  UNWIND $sessions AS id
  MATCH (:Session {id: id})<-[:BELONGS_TO]-(m:Memory)
  RETURN m
  UNION ALL
  UNWIND CASE WHEN size($sessions) = 0 THEN $projects ELSE [] END AS id
  MATCH (:Project {id: id})<-[:TAGGED_WITH]-(m:Memory)
  RETURN m
  UNION ALL
  UNWIND CASE WHEN size($sessions) + size($projects) = 0 THEN [true] ELSE [] END AS everywhere
  MATCH (m:Memory)
  RETURN m
}
WITH m
WHERE m.embedding IS NOT NULL AND size(m.embedding) = size($vector) AND m.deleted_at IS NULL
  AND (size($projects) = 0 OR m.source_project IN $projects)
  AND (size($memory_types) = 0 OR m.memory_type IN $memory_types)
  AND (size($tags) = 0 OR any(tag IN m.tags WHERE tag IN $tags))
  AND ($created_after IS NULL OR m.created_at >= datetime($created_after))
  AND ($created_before IS NULL OR m.created_at < datetime($created_before))
WITH m, vector.similarity.cosine(m.embedding, $vector) AS score
ORDER BY score DESC, m.id LIMIT $limit
OPTIONAL MATCH (m)-[:BELONGS_TO]->(s:Session)
RETURN collect([m.id, score, left(coalesce(m.content, ''), $characters), m.memory_type, m.importance,
  m.source_project, m.session_id, coalesce(m.tags, []), toString(m.created_at), toString(s.started_at),
  s.summary]) AS page
