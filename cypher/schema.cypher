// memory_id_unique //
// One node for each memory. No parameters.
CREATE CONSTRAINT memory_id_unique IF NOT EXISTS FOR (m:Memory) REQUIRE m.id IS UNIQUE

// session_id_unique //
// One node for each session. No parameters.
CREATE CONSTRAINT session_id_unique IF NOT EXISTS FOR (s:Session) REQUIRE s.id IS UNIQUE

// project_id_unique //
// One node for each project. No parameters.
CREATE CONSTRAINT project_id_unique IF NOT EXISTS FOR (p:Project) REQUIRE p.id IS UNIQUE

// memory_version_key_unique //
// One node for each version of a memory, however often it is delivered. No parameters.
CREATE CONSTRAINT memory_version_key_unique IF NOT EXISTS FOR (v:MemoryVersion) REQUIRE v.key IS UNIQUE

// store_id_unique //
// One node for each local store that writes here. No parameters.
CREATE CONSTRAINT store_id_unique IF NOT EXISTS FOR (s:Store) REQUIRE s.id IS UNIQUE

// incident_id_unique //
// One node for each incident, however many processes see it. No parameters.
CREATE CONSTRAINT incident_id_unique IF NOT EXISTS FOR (i:Incident) REQUIRE i.id IS UNIQUE

// memory_embedding //
// Vector index. $dimensions: length of a vector.
CREATE VECTOR INDEX memory_embedding IF NOT EXISTS FOR (m:Memory) ON (m.embedding)
OPTIONS {indexConfig: {`vector.dimensions`: $dimensions, `vector.similarity_function`: 'cosine', `vector.quantization.enabled`: false}}

// memory_content //
// Full-text index. $analyzer: name of a Lucene analyzer that the server knows.
CREATE FULLTEXT INDEX memory_content IF NOT EXISTS FOR (m:Memory) ON EACH [m.content, m.tags]
OPTIONS {indexConfig: {`fulltext.analyzer`: $analyzer}}

// memory_project_type //
// Memories of a project and a type. No parameters.
CREATE INDEX memory_project_type IF NOT EXISTS FOR (m:Memory) ON (m.source_project, m.memory_type)

// memory_created //
// Memories of a span of time. No parameters.
CREATE INDEX memory_created IF NOT EXISTS FOR (m:Memory) ON (m.created_at)

// memory_deleted //
// Tombstones, so that they are counted without reading every memory. No parameters.
CREATE INDEX memory_deleted IF NOT EXISTS FOR (m:Memory) ON (m.deleted_at)

// session_dates //
// Sessions of a span of time. No parameters.
CREATE INDEX session_dates IF NOT EXISTS FOR (s:Session) ON (s.started_at, s.ended_at)
