"""The world behind the ports: the only home of boto3, sqlite3 and openai."""
