// note_definition //
// Keeps the definition of the local table, and the one before it with its time. $id: the local store. $definition: JSON text.
MERGE (s:Store {id: $id})
// Takes the node's lock before it is read: several processes may note the same.
SET s:Store
WITH s, s.definition IS :: STRING NOT NULL AND s.definition <> $definition AS replaces
FOREACH (_ IN CASE WHEN replaces THEN [1] ELSE [] END |
  CREATE (:Definition {key: randomUUID(), store: $id, definition: s.definition,
    noted_at: coalesce(s.definition_at, datetime({epochSeconds: 0}))})
)
WITH s WHERE s.definition IS NULL OR s.definition <> $definition
SET s.definition = $definition, s.definition_at = datetime()

// definitions //
// [id of the local store, definition of its table], newest first. No parameters.
MATCH (s:Store) WHERE s.definition IS :: STRING NOT NULL
WITH s ORDER BY s.definition_at DESC, s.id
RETURN collect([s.id, s.definition]) AS definitions

// definition_history //
// [seconds and microseconds since 1970, definition] of all that was noted of the table of the local store $store, in order.
CALL () {
  MATCH (d:Definition {store: $store}) WHERE d.definition IS :: STRING NOT NULL AND d.noted_at IS :: ZONED DATETIME NOT NULL
  RETURN d.definition AS definition, d.noted_at AS noted_at
  UNION ALL
  MATCH (s:Store {id: $store}) WHERE s.definition IS :: STRING NOT NULL AND s.definition_at IS :: ZONED DATETIME NOT NULL
  RETURN s.definition AS definition, s.definition_at AS noted_at
}
WITH definition, noted_at ORDER BY noted_at
RETURN collect([noted_at.epochSeconds, noted_at.microsecond, definition]) AS history

// references //
// A page of rows of the local table `memory_references`. $after: last source of the page before. $limit: sources. $projects,
// $sessions, $memory_ids: scope of the sources, empty lists mean all.
MATCH (a:Memory)
WHERE a.id > $after
  AND (size($projects) = 0 OR a.source_project IN $projects)
  AND (size($sessions) = 0 OR a.session_id IN $sessions)
  AND (size($memory_ids) = 0 OR a.id IN $memory_ids)
  AND EXISTS { (a)-[link:REFERENCES]->(:Memory) WHERE NOT coalesce(link.deleted, false) }
WITH a ORDER BY a.id LIMIT $limit
MATCH (a)-[link:REFERENCES]->(b:Memory) WHERE NOT coalesce(link.deleted, false)
WITH a, link, b ORDER BY a.id, b.id, link.context
RETURN collect({source_id: a.id, target_id: b.id, context: coalesce(link.context, ''),
  created_at: toString(link.created_at)}) AS rows
