def faq_pages():
    return {}
