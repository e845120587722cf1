"""The PostgreSQL and the Neo4j that the program installs and runs by itself (extra `embedded`)."""
