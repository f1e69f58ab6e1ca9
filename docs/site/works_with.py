def works_with_pages():
    return {}
