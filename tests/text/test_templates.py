"""Inline templates give their words."""

import pytest

from saelib.text.wikitext import clean_markup

WORDS = {
    # units
    "{{convert|1300|mi|km}}": "1,300 mi",
    "{{convert|20|-|25|cm|in}}": "20–25 cm",
    "{{convert|5|ft|11|in|cm|abbr=on}}": "5 ft 11 in",
    "{{convert|193.3|by|69.5|mi|km}}": "193.3 by 69.5 mi",
    "{{convert|100|km|0|abbr=on}}": "100 km",
    "{{convert|10|x|20|x|30|mm}}": "10 × 20 × 30 mm",
    "{{Cvt|50.6|C|F}}": "50.6 °C",
    "{{convert|2|e6acre}}": "2 million acres",
    "{{convert|4.4|Moilbbl}}": "4.4 million bbl",
    "{{convert|2+1/2|sqmi}}": "2+1/2 sq mi",
    "{{val|6.241|e=18}}": "6.241×10^18",
    "{{val|0.99985|u=A}}": "0.99985 A",
    "{{val|1.00794|(7)}}": "1.00794(7)",
    "{{val|12|3|u=m}}": "12 ± 3 m",
    "5.98{{e|24}}": "5.98×10^24",
    "{{frac|3}} {{frac|1|2}} {{frac|2|1|2}}": "1/3 1/2 2 1/2",
    "{{formatnum: 3003}}": "3,003",
    "{{unité|100|km}}": "100 km",
    # languages, scripts, transliteration, sounds
    "{{lang|fr|Liberté}}": "Liberté",
    "{{lang-ar|{{big|الله}}}}": "الله",
    "{{transl|ar|ALA|''Allāh''}}": "Allāh",
    "{{rtl-lang|ar|الكيمياء}}": "الكيمياء",
    "{{Script|Runr|ᚨ}}": "ᚨ",
    "{{Nihongo|'''Aikido'''|合気道|Aikidō|lead=yes}}": "Aikido (合気道, Aikidō)",
    "{{Nihongo||乱取|randori}}": "randori (乱取)",
    "{{IPA|/a/}} {{IPA-de|tʃ|}} {{IPA|de|tʃ}} {{IPA|ä}}": "/a/ [tʃ] [tʃ] ä",
    "{{angbr|{{IPA|ä}}}}": "⟨ä⟩",
    "{{audio|De-Haus.ogg|Haus}}": "Haus",
    # text that is kept on a line, small, struck, marked
    "{{nowrap|60° E}} and {{Nobold|x}}": "60° E and x",
    "{{small|[[Genitive|GEN]]}}": "GEN",
    "{{resize|88%|the largest}}": "88%",
    "{{vanchor|Gate}}": "Gate",
    "{{nowrap|1=''E'' = ''mc''}}": "E = mc",
    "{{sic|teh}} {{sic}}": "teh [sic] [sic]",
    # dates
    "{{as of|2014|lc=y}}": "as of 2014",
    "{{As of|2015|6|30}}": "As of 30 June 2015",
    "{{as of|2011|5|since=y}}": "Since May 2011",
    "{{birth date|1809|2|12}}": "February 12, 1809",
    "{{birth date|1932|4|4|df=yes}}": "4 April 1932",
    "{{date|1|janvier|2000}}": "1 janvier 2000",
    "{{OldStyleDate|February 2|1905|January 20}}": "February 2 [O.S. January 20] 1905",
    "{{circa|330|320}} BC": "c. 330–320 BC",
    # abbreviations, names, signs
    "{{abbr|SR|Strike Rate}} {{sc|bc}}": "SR BC",
    "{{USS|Hornet|CV-12|6}}": "USS Hornet",
    "{{US$|2 billion}}": "US$2 billion",
    "{{ill|Gymnasium|de}} {{ill|de|Gymnasium}}": "Gymnasium Gymnasium",
    "{{keypress|Ctrl|C}}": "Ctrl+C",
    "15{{nbsp}}May{{snd}}{{·}}{{mdash}}Eagle{{'s}}": "15 May – · —Eagle's",
    "A{{music|flat}}4": "A♭4",
    "{{chem|C|''n''|H|2''n''+2}}": "CnH2n+2",
    "HA {{eqm}} H": "HA ⇌ H",
    "{{Coord|13|19|N|169|9|W|type:event}}": "13°19′N 169°9′W",
    "{{flag|Turkey}}": "Turkey",
}


@pytest.mark.parametrize("wikitext", WORDS)
def test_an_inline_template_gives_its_words(wikitext):
    assert clean_markup(f"See {wikitext} there.") == f"See {WORDS[wikitext]} there."


def test_a_quotation_stands_in_lines_of_its_own():
    assert clean_markup("They said {{quote|We came.|Ann}} and left.") == (
        "They said\nWe came.\nand left."
    )


NOTES = [
    *("{{citation needed|date=May 2014}}", "{{sfn|Barnes|1995|p=9}}", "{{rp|28}}", "{{refn|a}}"),
    *("{{who|date=May 2014}}", "{{clarify|reason=x}}", "{{dubious}}", "{{odd remark|date=2014}}"),
    *("{{better source|date=May 2014}}", "{{fr icon}}", "{{Unknown}}", "{{#tag:ref|a}}"),
]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_leaves_nothing_behind(note):
    assert clean_markup(f"It rose{note}, and fell.{note}") == "It rose, and fell."


def test_words_hold_what_is_in_them_and_no_more():
    assert clean_markup("A {{nowrap|{{lang|fr|le [[Mot|mot]]}}<ref>n</ref>}} b.") == "A le mot b."
    assert clean_markup("A {{convert|{{odd}}|km}} b.") == "", "an amount that is not known"
    assert clean_markup("A {{convert|many|km}} walk. Two.") == "Two."
