"""What no message may hold: commands that destroy something, in SQL, in Cypher and in a shell."""

import re

COMMAND = re.compile(
    r"\bDROP\s+(TABLE|SCHEMA|DATABASE|TRIGGER|EVENT|FUNCTION|INDEX|CONSTRAINT|COLUMN|OWNED|ROLE|USER|VIEW|TYPE|EXTENSION)\b"
    r"|\bTRUNCATE\s+(TABLE|ONLY|\"?(public\.)?\"?memories)\b|\bDELETE\s+FROM\b|\bALTER\s+(TABLE|SCHEMA|DATABASE|SYSTEM)\b"
    r"|\bUPDATE\s+(public\.)?memories\s+SET\b|\bDETACH\s+DELETE\b"
    r"|\brm\s+-\w*[rf]|\bdropdb\b|\bgit\s+(reset|clean)\b|\bkill\s+-9\b|\bmkfs\b",
    re.IGNORECASE,
)
