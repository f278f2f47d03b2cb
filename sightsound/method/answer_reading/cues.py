"""
The patterns by which `statements` and `claims` find and read a statement.

Every repetition is bounded and none is nested in another, so that any text takes linear time.
"""

import re


# Sentences end at ".", "!", "?" before a space, but not after a letter alone ("B. bell") or an abbreviation.
SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!\bvs)(?<!\bDr)(?<!\bMr)[.!?]+(?=\s|$)|\n")
LEAD = (
    r"(?:(?:that|so|therefore|thus|hence|clearly|definitely|indeed|probably|most|likely|simply|just|still|only|the"
    r"|correct|right|final|best|"
    r"answer|option|choice|letter|is|it's|it|be|would|to|with|number|choose|select|labell?ed|in|fact|actually|and|my|i)"
    r"(?![\w'])[\s:,]{0,4}){0,8}?"
)
# A letter of an option. In brackets it is always one; without, it must not be part of a word, a contraction (A's, D'accord), a
# note (A#), a fraction or a compound (B-flat).
LETTER = re.compile(
    r"[\s:=,>\"'-]{0,8}(?:option|choice|answer|letter)?[\s:]{0,3}"
    r"(?:[(\[{]\s?(?:option |choice )?([A-Za-z])\s?[)\]}]|(?<![\w'])([A-Za-z])(?![\w'#+%&/]|-\w))",
    re.IGNORECASE,
)
LETTER_AFTER_LEAD = re.compile(r"[\s:=,>\"'-]{0,8}" + LEAD + LETTER.pattern, re.IGNORECASE)
# "B or C", "(B), (C)", "A and B", "B/C": more than one letter. "B, I think" lists nothing, nor does "B and a bell".
MORE_LETTERS = re.compile(
    r"\s{0,3}(?:[,/&;]|,?\s?(?i:or|and|to|through|vs\.?|nor))\s{0,3}(?:(?i:or|and|option|choice|possibly"
    r"|maybe)\s){0,2}"
    r"(?:[(\[]\s?[A-Za-z]\s?[)\]]|[B-HJ-Z](?![\w'#])|A(?=\s{0,2}(?:[,.;:)\]]|$|or\b|and\b)))"
)
SLASH_LETTER = re.compile(r"[\s(\[]{0,3}[A-Z][)\]]?\s?(?:/|&)\s?[(\[]?[A-Z](?![\w'])")
# The words after a letter in a sentence about it. Only they distinguish the letter in "A because it rings" from the article in
# "A dog barks".
AFTER_LETTER = re.compile(
    r"\s+(?:because|since|as|is|due|based|given|which|but|while|although|considering|would|seems|fits|matches|best|here|for|"
    r"if|by|to me|according|rather|not|instead|--?|[–—=])(?!\w)",
    re.IGNORECASE,
)
MUSICAL = re.compile(
    r"\s+(?:flat|sharp|major|minor|natural|maj|min|chord|notes?|key|string|dim|aug|sus|dorian|pop|scale)(?!\w)", re.IGNORECASE
)
REJECTED = re.compile(
    r"[^.!?\n;]{0,60}?(?:\b(?:is|was|are|seems?|looks|would be|can be|as)\s+(?:also\s+|clearly\s+|definitely\s+)?"
    r"(?:not|wrong|incorrect|false|unlikely|ruled out|eliminated|excluded|out|impossible|implausible|the wrong|less likely)\b"
    r"|\b(?:isn't|can't|cannot|doesn't|does not|can not|wasn't|couldn't|won't)\b)",
    re.IGNORECASE,
)
PLAIN_DENIAL = re.compile(
    r"\b(?:not|n't|neither|none|nothing|unclear|unknown|undetermined|uncertain|cannot|can't|either|both|all)\b", re.IGNORECASE
)
BE = (
    r"(?:(?:would|will|should|must|has to|have to|can only|seems? to|appears? to)\s+(?:likely\s+|therefore\s+)?be"
    r"|is|was|are|'s|remains)"
)
# "the answer is", "the option that fits best is", "my pick would be", "Answer:", "ANSWER = ", "réponse :". "Another
# option is" and "the wrong option is" state no answer.
STATES = re.compile(
    r"(?<!other )(?<!\bone )(?<!\bfirst )(?<!\bsecond )(?<!\bthird )(?<!\bfourth )(?<!\blast )(?<!\bnext )(?<!\beach )"
    r"(?<!\bwrong )(?<!\bevery )(?<!\bno )(?<!\bany )(?<!\bpossible )(?<!\bincorrect )(?<!\btempting )(?<!\bplausible )"
    r"(?<!\bwhich )(?<!\bwhat )(?<!unlikely )(?<!least )(?<!less )"
    r"\b(?:(?:correct|final|(?<!the )best|fitting|likely|suitable|appropriate|plausible|probable)"
    r" (?!(?:notes?|keys?|chords?|strings?|pitch|tone|scale|root|tonic)\b)[a-z]{3,20}"
    r"|answer|option|choice|ans\.?|letter|conclusion|selection|response|prediction|pick|guess|bet|verdict|decision"
    r"|match|fit|"
    r"réponse|respuesta|antwort|risposta|resposta|答案)"
    r"(?:(?:,?\s[^\s.!?:;,\n]{1,20}){0,9}?,?\s"
    + BE
    + r"(?!\w)|'s(?!\w)|\W{0,4}?\s?(?:=|[-=]>|[-–—]\s|:|is(?!\w)|est |es |ist |è |é |是|为)"
    r"|\s?(?=\((?:[A-Z])\))|(?:(?<=\bans)|(?<=\bans\.))\s(?=[A-Z](?![\w']))|\s?(?=\n\s{0,4}\S))[\s:]{0,4}",
    re.IGNORECASE,
)
CHOOSES = re.compile(
    r"\b(?:I|we|let's|let us|let me)(?:'d|'ll|'m|(?:'m|\s+am)\s+(?:going to|gonna)"
    r"|\s+(?:would|will|must|can|have to|should|am|therefore|thus|finally|so|do|now"
    r"|can therefore))?"
    r"(?:\s+(?:also|still|therefore|thus|confidently|have to|definitely))?\s+"
    r"(?:choose|chose|prefer|put down"
    r"|pick|picked|select|selected|go(?:ing)? (?:with|for)|went with|say|opt(?:ed)? for|settl(?:e|ed) on"
    r"|conclude|vote for|guess|bet on|lean(?:ing)? towards?"
    r"|answer(?: with)?|choosing|picking|selecting|decide on|am confident (?:it is|it's))(?!\w)[\s:]{0,4}"
    r"|(?:^|[.,;:!?\n]\s{0,4}|\b(?:so|therefore|thus|to|then|and) )"
    r"(?:choose|pick|select|go(?:ing)? with|lock in)(?!\w)[\s:]{0,4}"
    r"|\b(?:choose|pick|select|with)\s(?=(?:the )?(?:option|choice)\b)",
    re.IGNORECASE,
)
# "(B) bell is the correct answer", "B fits best": the choice stands before these words.
IS_RIGHT = re.compile(
    r"\s(?:is|are|'s|would be|must be|should be|seems|sounds|seems to be|appears to be)\s(?:clearly |definitely |indeed "
    r"|therefore |thus |also |then |likely )?"
    r"(?:the |my )?(?:most |best |better |only |single |one |more )?"
    r"(?:likely |final |logical |suitable |appropriate |plausible "
    r"|accurate |reasonable )?"
    r"(?:correct|right|answer|best|better|accurate|appropriate|suitable|plausible|likely|logical|fitting|fit|match|choice|option"
    r"|true)"
    r"(?! (?:after|before|next|behind|now|at|here|in front|side|hand|to|of|above))\b"
    r"|\s(?:fits|matches|suits|answers)\s(?:best|better|the\s(?:question|description|audio|sound|recording|clip))\b"
    r"|\smakes (?:the )?(?:most|more) sense\b|\swins(?=[.!\n]|$)|\s(?:it is|fits|matches|remains)\s{0,3}(?=[.!\n]|$)",
    re.IGNORECASE,
)
CLAUSE_START = re.compile(
    r"[,;:!?\n—–]\s|\.\s(?!\w\s)|\n|\b(?:but|so|therefore|thus|hence|and|because|while|whereas)\s", re.IGNORECASE
)
# One of these before a cue, in the same clause, turns the statement into a denial, a doubt or a condition.
NOT_STATED = re.compile(
    r"\b(?:not|\w{2,7}n't|doubt|whether|if|unless|unclear|unsure|never|cannot|neither|nor|might|may|maybe|perhaps"
    r"|possibly|could|initial|original|previous|unlikely|(?:least|less) \w+)\b",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"\W{0,4}(?:so |and |but |or |then |hmm,? |wait,? )?(?:is|are|was|were|could|can|do|does|did|what|which|who|how|why"
    r"|where|when|would|should|may|shall"
    r"|will|has|have|might)\b",
    re.IGNORECASE,
)
CONCLUDES = re.compile(
    r"(?:^|[.,;:!?\n—–-]\s{0,4}|\band )(?:therefore|thus|hence|so|based on|consequently|in conclusion|to conclude|in summary"
    r"|overall|ultimately|accordingly"
    r"|as a result|all in all|to sum up|in short|conclusion|my conclusion|this leaves|leaving|which leaves"
    r"|that leaves|only leaves|(?:we|I) (?:am|are) left with)(?![\w'])[\s,:]{0,4}",
    re.IGNORECASE,
)
POINTS = re.compile(
    r"(?:\b(?:it's|it is|this is|that's|that is|it looks like|looks like|it must be|it has to be"
    r"|(?:this|that|it) (?:would|must|should|has to|ought to) be|these are|(?:this|that) one is"
    r"|(?:this|that|it)'d be"
    r"|turn(?:s|ed) out (?:to be|it (?:is|was))|comes down to|they are"
    r"|it was|it sounds like|it seems to be|"
    r"this sounds like|I think|I believe|I hear|the sound is)(?!\w))[\s:]{0,4}"
    r"(?:(?:actually|really|definitely|clearly|simply|rather)\s)?",
    re.IGNORECASE,
)
# "The answer is A. Wait, no, C.": only the text after the correction counts, if it answers.
CORRECTS = re.compile(
    r"(?:^|[.!?\n—–…-]\s{0,4}|,\s)(?:oh,? |no,? |hmm,? |but )?(?:wait|actually,|correction|scratch that"
    r"|on second thoughts?|oops|hold on|i mean|or rather|sorry"
    r"|rather,|i take that back|let me (?:correct|rethink|revise"
    r"|reconsider)[^.!?\n]{0,40})(?!\w)[\s,:.!…—–-]{0,6}(?:no\b[\s,:.—–-]{0,4}|actually\b[\s,]{0,3}){0,2}"
    r"|[.!?]\s{1,3}no,\s{1,3}",
    re.IGNORECASE,
)
REFUSES = re.compile(
    r"\b(?:i'm sorry|i am sorry|i apologi[sz]e|as an ai|(?:can't|cannot|could not|couldn't|can not) (?:be )?(?:directly "
    r"|reliably |really |confidently )?"
    r"(?:hear|listen|process|determine|tell|identify|answer|access|assist|help|analy[sz]e|decide|say|discern|provide"
    r"|make out|know|choose|pick|infer|distinguish)"
    r"|unable to|not able to|don't have (?:access|the ability|enough|any)|do not have (?:access|the ability|enough|any)"
    r"|no audio|not enough (?:information|context)"
    r"|(?:don't|do not) know|unclear|impossible to|insufficient|(?:hard|difficult) to (?:say|tell|determine|know|decide)"
    r"|not (?:entirely |quite |completely )?(?:sure|certain)"
    r"|(?:need|require)s? (?:more|the audio|to (?:hear|listen))|no idea|not available|without (?:hearing|listening"
    r"|the audio)|please (?:provide|upload|share|clarify|specify))",
    re.IGNORECASE,
)
UNMARKED = re.compile(r"[A-Za-z0-9 ,.;:!?()/%+-]*")
LONE_LETTER = re.compile(r"(?<![^\W_])[A-Za-z](?![^\W_])")
# A text without any of these is a few plain words ("fire engines"), which are compared with the choices directly.
SPECIAL_READING = re.compile(
    r"[^A-Za-z ]|\b[A-Za-z]\b|.{60}|answer|option|choice|choose|select|conclu|pick|correct|right|best|\b(?:is|it|so|then"
    r"|therefore|that|go|say|"
    r"no|not|none|yes|both|all|neither)\b",
    re.IGNORECASE,
)
# Every statement below has one of these; a text without, "a man reading in a library", skips the search for statements.
HAS_CUE = re.compile(
    r"\b(?:answer|option|choice|choos|chose|ans|conclu|select|response|predict|pick|guess|bet|verdict|deci|match|fit|suit"
    r"|r[ée]ponse|"
    r"respuesta|antwort|risposta|resposta|is|are|was|it|this|that|they|would|must|should|seem|sound|appear|make|go|went"
    r"|say|opt|settl|"
    r"vote|based on|therefore|thus|hence|so|conseq|in (?:conc|summ|short)|overall|final|ultimate|accord|as a|all in|to (?:conc"
    r"|sum)|my|then|leav|"
    r"only|which|look|win|turn|come|remain|lean|letter|i|we|let|wait|actually|correct|scratch|on second|oops|hold|or rather"
    r"|sorry|rather|no)|'s|答案",
    re.IGNORECASE,
)
INLINE_OPTION = re.compile(r"(?<![\w'])[(\[]?([A-Z])[)\].:](?=\s)")
SETS_APART = re.compile(r"\b(?:not|unlike|than|whereas|instead|while|but)\b", re.IGNORECASE)
# "not B but C" and "not A, not B, C" mean C.
NOT_BUT = re.compile(
    r"(?:definitely |actually )?not\b[^.;\n]{1,80}?\bbut (?:rather |instead )?"
    r"|not [(\[]?[A-Z][)\]]?(?:,? (?:and )?(?:not|nor) [(\[]?[A-Z][)\]]?){0,24}[,;]? (?=[(\[]?[A-Z][)\]]?[.!]?$)",
    re.IGNORECASE,
)
# "At first I thought the answer was A": an earlier belief is no answer. It ends where the sentence turns ("but", "so").
PAST_BELIEF = re.compile(
    r"\b(?:thought(?! (?:about|carefully|hard|it (?:through|over)))|believed|assumed|suspected|(?<!as )expected"
    r"|used to (?:think|believe|say)|at first|initially"
    r"|originally|my first|first (?:guess|impression|thought|instinct|idea)|(?:would|can|you|one) (?:think|expect|assume)"
    r"|tempt(?:ed|ing)|was (?:(?:going|about) to|convinced|sure|certain)"
    r"|(?:everyone|everybody|someone|somebody|people|others) (?:\w{1,9} )?(?:says?|thinks?|believes?|chooses?|picks?))\b",
    re.IGNORECASE,
)
PAST_CLAIM = re.compile(
    r"(?:first |initially |originally |at first )?(?:thought|believed|assumed|expected|said) to be\b"
    r"|[^.;!?\n]{0,60}?\bbut (?:(?:that|it|this|which)\s?)?(?:is|was|'s|would be) "
    r"(?:wrong|incorrect|false|misleading|mistaken|a trap"
    r"|not (?:correct|right|the answer|so))\b"
    r"|[^.,;!?\n]{1,40}?\s(?:at first|initially|originally)\b",
    re.IGNORECASE,
)
TURNS = re.compile(
    r"\b(?:but|however|now|so|therefore|thus|hence|yet|though|although|still|actually|then|finally|in fact|and)\b|[.!?;\n—–]",
    re.IGNORECASE,
)
TAKES_BACK = re.compile(r"\bbut\b|;|\bturn(?:s|ed) out\b")
# "The sound in the clip is C." A choice's text counts here only as the last words of the text.
SUBJECT_IS = re.compile(
    r"\b(?:the|my)(?:\s(?!wrong|incorrect|other|first|second|third|next|last|not\b|never|least|less|un|(?:there|it|he|she|they|if|when)\b)[a-z][\w'-]{0,24}){1,8}?"
    r"\s" + BE + r"[\s:]{1,3}(?=(?:option |choice )?((?-i:\([A-Z]\)|[A-Z]))(?:[.!]?\s{0,3}\Z|[.!]\s|\n)"
    r"|(?:(?!\s(?:is|was|are)\s)[^.,;!?\n]){2,60}[.!]?\s{0,3}\Z)",
    re.IGNORECASE,
)
NAMES_NOTE = re.compile(r"\b(?:notes?|keys?|chords?|strings?|pitch|tone|scale|root|tonic)\b", re.IGNORECASE)
# "B is louder than A" compares the two; "B is more likely than A" prefers one.
COMPARES_LETTERS = re.compile(
    r"\W{0,3}[A-Z]\W{0,2}\s(?:is|was|sounds|seems|plays|starts|comes|lasts)\s"
    r"(?:(?!better|likel|plausib|convinc|probable|right|correct)[\w'-]{1,20}\s){1,3}than\s"
    r"(?:option |choice )?[(\[]?[A-Z](?![\w'])"
)
# "D? Yes."
AFFIRMED = re.compile(
    r"(?:(?:is|was|could|would) (?:it|this|that|the answer) (?:be )?)?"
    r"([^?？\n]{1,80})[?？]\s{1,3}(?:yes|yeah|right|correct|exactly|definitely|indeed)[.!]?",
    re.IGNORECASE,
)
# "Which one? B."
LETTER_SENTENCE = re.compile(r"(?:[?!]|[a-z][\w')\]]\.)\s{1,3}(?:[Oo]ption |[Cc]hoice )?(?:[(\[]([A-Z])[)\]]|([A-HJ-Z]))[.!]?$")
ENDS_IN_YES_OR_NO = re.compile(
    r"^(?!.*\b(?:if|whether|or|unless)\b).*\b(?<!not )(?:so|hence|therefore|thus)[,:]?\s(yes|no)(?:[.!]?$|,\s)", re.IGNORECASE
)
SHORT_QUESTION = re.compile(r"[^.!?\n]{1,60}\?")
REASON = re.compile(
    r",?\s(?:because|since|as (?:the|it|there|he|she|they|i)|due to|given that|based on|considering|judging|unlike"
    r"|even though|although)\b",
    re.IGNORECASE,
)
# "Between A and B, B" decides for one letter.
PREFERS = re.compile(r"\b(?:between|of|comparing|among)\b[^.;\n]{3,50},\s[(\[]?[A-Z][)\]]?\s{0,3}$", re.IGNORECASE)
LETTERS_JOINED = re.compile(r"(?<![\w'])[A-Z][)\].]?\s?(?:,|and|or|&|/)\s{0,3}(?:and |or )?[(\[]?[A-Z][)\]]?\s{0,3}$")
# "on closer listening D" (is correct). The groups are those of `LETTER`.
LAST_LETTER = re.compile(r"(?<=\s)(?:[(\[]([A-Z])[)\]]|([A-HJ-Z]))$")
SUBJECT_LEAD = re.compile(
    r"\W{0,3}(?:(?:so|therefore|thus|hence|i think|i believe|only|clearly|that|the|option|choice|answer|letter|here|then"
    r"|which means)\s+){0,5}",
    re.IGNORECASE,
)
OPTION_LINE = re.compile(r"(?:option |choice )?[(\[]?([A-Za-z])(?:[)\]]|[.:)](?=\s))\s{0,3}(.*)", re.IGNORECASE)
# "D) bell - correct", in a list of all options.
MARKED_CORRECT = re.compile(
    r"(?:[-–—:(=,]\s{0,3}|\bis )(?:this is )?(?:the )?(?:correct|right|yes|true|best)\b[^.;\n]{0,20}$|[✓✔✅]", re.IGNORECASE
)
# "Based on the audio, B." and "Clearly B.", but not the end of a list of letters.
END_LETTER = re.compile(
    r"(?<![^\W_])(?:[a-z]{2,20},|[a-z]{2,20}:|(?:clearly|definitely|obviously|certainly|probably|surely|of course))\s"
    r"(?:option |choice )?(?:[(\[]([A-Z])[)\]]|([A-HJ-Z]))[.!]?$",
    re.IGNORECASE,
)
NO_END = re.compile(
    r"\b(?:not|\w{2,7}n't|maybe|perhaps|possibly|might|may|could|or|neither|nor|either|both|and|unsure|unclear|except)\b",
    re.IGNORECASE,
)
JOINED = re.compile(r"\W*(?:[^\W_]+\W+){1,2}(?:and|or|&)\W+(?!not\b)(?:[^\W_]+\W*){1,2}$", re.IGNORECASE)
# "C since the man is not heard": the denial is not about C.
OTHER_CLAUSE = re.compile(r"because|since|,|\.|;|—|as\b")
# "The options are a man and a woman" repeats the question.
REPEATS_OPTIONS = re.compile(
    r"\b(?:options|choices|candidates) (?:are|were|include)\b|\bquestion (?:is|asks|wants)\b", re.IGNORECASE
)
