"""A few sentences in many languages, written for these tests: everyday text, where scripts and signs meet."""

from __future__ import annotations

__all__ = ["LANGUAGES"]

LANGUAGES = {
    "ar": "وصل القطار متأخرًا بعشر دقائق، فانتظرنا في المقهى. هل تريد كوبًا من الشاي؟ السعر ٣٫٥٠ دينار فقط!",
    "bn": "ট্রেনটি দশ মিনিট দেরিতে এসেছে। আমরা স্টেশনে চা খেলাম, দাম ছিল ২৫ টাকা। কাল আবার দেখা হবে?",
    "bg": "Влакът закъсня с 10 минути, затова пихме кафе на гарата. Утре ще вали – вземи чадър!",
    "cs": "Vlak přijel o 10 minut později, a tak jsme si dali kávu. „Přijdeš zítra?“ zeptala se Žofie.",
    "da": "Toget kom ti minutter for sent, så vi købte kaffe på stationen. Hvad koster æblerne? 12,50 kr.",
    "de": "Der Zug kam zehn Minuten zu spät; wir tranken Kaffee am Gleis 3. »Weißt du, wann’s weitergeht?«, fragte Jörg.",
    "el": "Το τρένο άργησε δέκα λεπτά κι έτσι ήπιαμε καφέ στον σταθμό. Πόσο κάνει; Μόνο 2,50 €! ΑΥΡΙΟ ΘΑ ΒΡΕΞΕΙ.",
    "en": "The train was ten minutes late, so we'd had coffee by 9:45. Isn't that what they've said? It's $3.20, I'm told.",
    "es": "El tren llegó diez minutos tarde y tomamos café en la estación. ¿Cuánto cuesta? ¡Solo 2,50 €! Mañana lloverá.",
    "fa": "قطار ده دقیقه دیر رسید و ما در ایستگاه چای نوشیدیم. می‌خواهید فردا بیایید؟ قیمتش ۲۵۰۰ تومان است.",
    "fi": "Juna oli kymmenen minuuttia myöhässä, joten joimme kahvit asemalla. Paljonko tämä maksaa? Vain 2,50 €.",
    "fr": "Le train avait dix minutes de retard ; nous avons bu un café à la gare. « C’est combien ? » — 2,50 € à l'aller.",
    "he": "הרכבת איחרה בעשר דקות, אז שתינו קפה בתחנה. כמה זה עולה? רק 12 ש״ח. שָׁלוֹם לכולם!",
    "hi": "ट्रेन दस मिनट देर से आई, इसलिए हमने स्टेशन पर चाय पी। क्या कल भी बारिश होगी? क़ीमत सिर्फ़ २५ रुपये है।",
    "hu": "A vonat tíz percet késett, ezért kávéztunk az állomáson. Mennyibe kerül? Csak 850 Ft. Őrült idő lesz holnap!",
    "id": "Keretanya terlambat sepuluh menit, jadi kami minum kopi di stasiun. Berapa harganya? Hanya Rp12.500,00.",
    "it": "Il treno aveva dieci minuti di ritardo, così abbiamo bevuto un caffè. Quant'è? L'altro ieri costava 1,20 €.",
    "ja": "電車が10分遅れたので、駅のカフェでコーヒーを飲みました。「明日も雨ですか？」ー　傘は１，２００円です。",
    "ka": "მატარებელმა ათი წუთით დაიგვიანა, ამიტომ სადგურზე ყავა დავლიეთ. რა ღირს? მხოლოდ 5 ლარი.",
    "ko": "기차가 10분 늦어서 역에서 커피를 마셨습니다. 내일도 비가 올까요? 우산은 12,000원입니다.",
    "nl": "De trein was tien minuten te laat, dus dronken we koffie. Wat kost dat? ’s Ochtends € 2,50, zei Anaïs.",
    "pl": "Pociąg spóźnił się o dziesięć minut, więc wypiliśmy kawę. „Ile to kosztuje?” – spytał Łukasz. Źle: 12,50 zł.",
    "pt": "O comboio chegou dez minutos atrasado e tomámos um café. Quanto custa? São só 2,50 €, não é? Amanhã há sol.",
    "ru": "Поезд опоздал на десять минут, и мы выпили кофе на вокзале. «Сколько стоит?» — спросила Алёна. 250 ₽ всего.",
    "sw": "Treni ilichelewa dakika kumi, kwa hiyo tulikunywa kahawa kituoni. Bei ni shilingi 2,500 tu. Ng'ombe wako wapi?",
    "ta": "ரயில் பத்து நிமிடம் தாமதமாக வந்தது, எனவே நிலையத்தில் தேநீர் குடித்தோம். விலை 25 ரூபாய்.",
    "te": "రైలు పది నిమిషాలు ఆలస్యంగా వచ్చింది, అందుకే స్టేషన్‌లో టీ తాగాము. ధర 25 రూపాయలు.",
    "th": "รถไฟมาช้าสิบนาที เราจึงดื่มกาแฟที่สถานี พรุ่งนี้ฝนจะตกไหม ราคา ๒๕ บาทเท่านั้น",
    "tr": "Tren on dakika gecikti, biz de istasyonda kahve içtik. Fiyatı ne kadar? İSTANBUL'da 25₺, Iğdır'da daha ucuz.",
    "uk": "Потяг запізнився на десять хвилин, тож ми випили кави на вокзалі. Скільки коштує? П’ять гривень, об'єкт № 7.",
    "vi": "Tàu đến trễ mười phút nên chúng tôi uống cà phê ở ga. Giá bao nhiêu? Chỉ 25.000 ₫ thôi! Ngày mai trời mưa.",
    "zh": "火车晚点了十分钟，我们就在车站喝了咖啡。明天还会下雨吗？雨伞只要25.50元！——“太便宜了”，她说。",
    "am": "ባቡሩ አሥር ደቂቃ ዘገየ፤ ስለዚህ በጣቢያው ቡና ጠጣን። ዋጋው ስንት ነው? ፳፭ ብር ብቻ።",
    "my": "ရထားက ဆယ်မိနစ် နောက်ကျတယ်။ ဘူတာမှာ ကော်ဖီသောက်ခဲ့ကြတယ်။ ဈေးက ၂၅၀ ကျပ်ပါ။",
}
